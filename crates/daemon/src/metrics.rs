//! `GET /metrics`: what every daemon shows of its build and its process, and the form in which all of it is written.

mod classic;
mod process;

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::{ApiError, build};

/// What a collector says that reads OpenMetrics, and what it gets then.
const OPENMETRICS: &str = "application/openmetrics-text";
const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What everybody else gets.
const CLASSIC_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a daemon shows besides its own metrics. There is one in a daemon's life, made at its start.
#[derive(Debug)]
pub struct Exposition {
    common: Registry,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
    commit: &'static str,
}

impl Exposition {
    /// Of a daemon that starts now.
    pub fn start() -> Self {
        let mut common = Registry::default();
        let build_info = Family::<BuildLabels, Gauge>::default();
        let labels = BuildLabels {
            version: build::version(),
            commit: build::commit(),
        };
        build_info.get_or_create(&labels).set(1);
        common.register("rbee_build_info", "Always 1; the labels tell what runs", build_info);
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        common.register_collector(Box::new(process::Process::started(started)));
        Self { common }
    }

    /// The answer: these metrics and the common ones, in the format that the client reads.
    ///
    /// # Errors
    /// A metric cannot be written, which is a fault of it.
    pub fn answer(&self, headers: &HeaderMap, registry: &Registry) -> Result<Response, ApiError> {
        let text = self.text(registry).map_err(ApiError::internal)?;
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let answer = if accept.is_some_and(|accept| accept.contains(OPENMETRICS)) {
            ([(header::CONTENT_TYPE, OPENMETRICS_TYPE)], text)
        } else {
            ([(header::CONTENT_TYPE, CLASSIC_TYPE)], classic::from_openmetrics(&text))
        };
        Ok(answer.into_response())
    }

    /// In the OpenMetrics text format.
    fn text(&self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(8 << 10);
        encode_registry(&mut text, registry)?;
        encode_registry(&mut text, &self.common)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Writes a figure that is read when it is asked for.
///
/// # Errors
/// As the encoder's.
pub fn show(
    encoder: &mut prometheus_client::encoding::DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http_body_util::BodyExt;
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    async fn asked(accept: Option<&'static str>) -> (String, String) {
        let mut headers = HeaderMap::new();
        headers.extend(accept.map(|accept| (header::ACCEPT, HeaderValue::from_static(accept))));
        let mut registry = Registry::with_prefix("rbee");
        let eggs = Counter::<u64>::default();
        eggs.inc_by(3);
        registry.register("eggs", "Eggs laid", eggs);
        let answer = Exposition::start().answer(&headers, &registry).unwrap();
        let mime = answer.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (mime, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn collectors_get_the_format_that_they_ask_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let (mime, text) = asked(Some(prometheus)).await;
        assert_eq!(mime, OPENMETRICS_TYPE);
        assert!(text.contains("# TYPE rbee_eggs counter\nrbee_eggs_total 3\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        for accept in [None, Some("*/*"), Some("text/plain")] {
            let (mime, text) = asked(accept).await;
            assert_eq!(mime, CLASSIC_TYPE);
            assert!(
                text.contains("# TYPE rbee_eggs_total counter\nrbee_eggs_total 3\n"),
                "{text}"
            );
            assert!(!text.contains("# EOF"), "{text}");
        }
    }

    #[tokio::test]
    async fn every_daemon_tells_its_build_and_its_start() {
        let (_, text) = asked(None).await;
        let (version, commit) = (build::version(), build::commit());
        let line = format!("rbee_build_info{{version=\"{version}\",commit=\"{commit}\"}} 1\n");
        assert!(text.contains(&line), "{text}");
        let started = text
            .lines()
            .find_map(|line| line.strip_prefix("process_start_time_seconds "))
            .and_then(|value| value.parse::<f64>().ok());
        assert!(started.is_some_and(|started| started > 1.7e9), "{text}");
    }
}
