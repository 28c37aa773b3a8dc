//! Asks a web server how large a file is. It need not say so: there are servers that only give files.

use reqwest::Method;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue};
use tokio_util::sync::CancellationToken;

use crate::download::{RemoteFile, Source};
use crate::http::{Backoff, Failure, Http, Request, Retry};
use crate::{ModelRef, StoreError, UrlRef};

/// Asks for the file's size.
pub(crate) async fn locate(
    url: &UrlRef,
    http: &Http,
    retry: Retry,
    cancel: &CancellationToken,
) -> Result<RemoteFile, StoreError> {
    let request = Request {
        method: Method::HEAD,
        url: url.address(),
        headers: HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]),
        bearer: None,
        leave_origin: true,
    };
    let mut backoff = Backoff::new(retry);
    let size = loop {
        let answer = tokio::select! {
            () = cancel.cancelled() => return Err(StoreError::Cancelled),
            answer = http.send(&request) => answer,
        };
        match answer {
            Ok(response) => {
                let length = response.headers().get(CONTENT_LENGTH);
                let length = length.and_then(|length| length.to_str().ok()?.trim().parse().ok());
                // Some take the length of this answer for that of the file.
                break length.filter(|&length: &u64| length > 0);
            }
            // The transfer itself will show whether the file is there.
            Err(Failure::Final(StoreError::Refused { .. })) => break None,
            Err(failure) => backoff.pause(failure, cancel).await?,
        }
    };
    let reference = ModelRef::Url(url.clone());
    let source = Source {
        what: reference.printable(),
        from: url.host().into(),
        url: url.address().clone(),
        bearer: None,
        size,
        sha256: url.sha256().map(str::to_owned),
    };
    Ok(RemoteFile {
        reference,
        source,
        commit: None,
    })
}
