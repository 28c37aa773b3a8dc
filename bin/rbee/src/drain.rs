//! `rbee drain`: a host that takes nothing new.

use std::process::ExitCode;

use queen_rbee::supply::DrainView;
use reqwest::Method;
use serde_json::Value;

use crate::api;
use crate::cli::{DrainArgs, Global};
use crate::fleet::Client;
use crate::render;

/// `rbee drain`.
pub(crate) async fn drain(global: &Global, args: &DrainArgs) -> anyhow::Result<ExitCode> {
    let queen = Client::new(global)?.queen();
    let path = format!("/v1/hives/{}/drain", api::segment(&args.hive));
    let method = if args.undo { Method::DELETE } else { Method::POST };
    if global.json {
        // As the queen says it, so that programs also get what this version does not know.
        let drained: Value = queen.call(method, &path).await?;
        render::json_line(&drained)?;
    } else {
        let drained: DrainView = queen.call(method, &path).await?;
        render::print(&sentence(&drained))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn sentence(drained: &DrainView) -> String {
    let hive = &drained.hive;
    if !drained.is_drained {
        return format!("{hive} takes workers again");
    }
    let workers: Vec<_> = drained.workers.iter().map(|worker| worker.as_str()).collect();
    let rest = match workers.as_slice() {
        [] => "no worker is left on it".to_owned(),
        [worker] => format!("{worker} finishes its requests and ends"),
        workers => format!("{} finish their requests and end", workers.join(", ")),
    };
    match &drained.reason {
        Some(reason) => format!("{hive} takes nothing new; {rest}; {}", render::clean(reason)),
        None => format!("{hive} takes nothing new; {rest}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(is_drained: bool, workers: &[&str], reason: Option<&str>) -> String {
        let view = json!({"hive": "gpu-box", "is_drained": is_drained, "workers": workers, "reason": reason});
        sentence(&serde_json::from_value(view).unwrap())
    }

    #[test]
    fn a_drained_host_names_who_is_still_there_and_what_stands_in_the_way() {
        assert_eq!(
            shown(true, &[], None),
            "gpu-box takes nothing new; no worker is left on it"
        );
        assert_eq!(
            shown(true, &["worker-1"], None),
            "gpu-box takes nothing new; worker-1 finishes its requests and ends"
        );
        assert_eq!(
            shown(true, &["worker-1", "worker-2"], Some("m has no place elsewhere")),
            "gpu-box takes nothing new; worker-1, worker-2 finish their requests and end; m has no place elsewhere"
        );
        assert_eq!(shown(false, &["worker-1"], None), "gpu-box takes workers again");
    }
}
