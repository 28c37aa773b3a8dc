//! The text format that Prometheus had before OpenMetrics, 0.0.4. Most that is not Prometheus reads only this.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

/// Makes classic text of OpenMetrics text. There a counter's help and type go by the name without `_total`, which its samples
/// have; a classic reader would take that for two metrics, one of them without samples and the other without a type.
pub(super) fn from_openmetrics(text: &str) -> String {
    let mut classic = String::with_capacity(text.len() + text.len() / 16);
    // Help is written before the type, by which the name is known.
    let mut help = None;
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ').map(|(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some(help) = help.take() {
                push_line(&mut classic, &["# HELP ", name, suffix, " ", help]);
            }
            let kind = if kind == "unknown" { "untyped" } else { kind };
            push_line(&mut classic, &["# TYPE ", name, suffix, " ", kind]);
        } else if !line.starts_with('#') {
            push_line(&mut classic, &[line]);
        }
    }
    classic
}

fn push_line(text: &mut String, parts: &[&str]) {
    text.extend(parts.iter().copied());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_counters_are_whole_and_what_classic_readers_do_not_know_is_left_out() {
        let openmetrics = "\
            # HELP eggs Eggs laid, by hen.\n\
            # TYPE eggs counter\n\
            eggs_total{hen=\"a b\"} 3\n\
            # HELP nest_bytes Room.\n\
            # TYPE nest_bytes gauge\n\
            # UNIT nest_bytes bytes\n\
            nest_bytes 1.5\n\
            # HELP odd Who knows.\n\
            # TYPE odd unknown\n\
            odd 1\n\
            # EOF\n";
        let classic = "\
            # HELP eggs_total Eggs laid, by hen.\n\
            # TYPE eggs_total counter\n\
            eggs_total{hen=\"a b\"} 3\n\
            # HELP nest_bytes Room.\n\
            # TYPE nest_bytes gauge\n\
            nest_bytes 1.5\n\
            # HELP odd Who knows.\n\
            # TYPE odd untyped\n\
            odd 1\n";
        assert_eq!(from_openmetrics(openmetrics), classic);
    }
}
