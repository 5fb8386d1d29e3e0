//! The formats of the metrics page: Prometheus' classic text format, or OpenMetrics on request.
//!
//! The library writes only OpenMetrics. In the classic format, a counter family has the name of its samples, and there
//! is no info type and no unit.

use std::fmt::Write;

use hyper::HeaderMap;
use hyper::header::ACCEPT;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Classic,
    OpenMetrics,
}

impl Format {
    /// The format for a request. OpenMetrics has to be named explicitly (`*/*` is not enough), and the classic format
    /// must not be preferred.
    pub fn accepted(headers: &HeaderMap) -> Self {
        let (mut open_metrics, mut classic) = (0.0_f32, 0.0_f32);
        let values = headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok());
        for range in values.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut version, mut quality) = (None, 1.0_f32);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                let value = value.trim().trim_matches('"');
                match name.trim().to_ascii_lowercase().as_str() {
                    "version" => version = Some(value),
                    "q" => quality = value.parse().unwrap_or(0.0),
                    _ => {}
                }
            }
            if kind.eq_ignore_ascii_case("application/openmetrics-text")
                && version.is_none_or(|version| version == "1.0.0")
            {
                open_metrics = quality.max(open_metrics);
            } else if kind.eq_ignore_ascii_case("text/plain")
                && version.is_none_or(|version| version == "0.0.4")
            {
                classic = quality.max(classic);
            }
        }
        if open_metrics > 0.0 && open_metrics >= classic {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Converts a page to the classic format.
pub fn classic(open_metrics: &str) -> String {
    let mut page = String::with_capacity(open_metrics.len());
    // The name in a HELP line depends on the type, which follows in the next line.
    let mut help = None;
    for line in open_metrics.lines() {
        // Writing to a String does not fail.
        let _ = if let Some(text) = line.strip_prefix("# HELP ") {
            help = text.split_once(' ');
            Ok(())
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|text| text.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                let _ = writeln!(page, "# HELP {name}{suffix} {help}");
            }
            writeln!(page, "# TYPE {name}{suffix} {kind}")
        } else if line.starts_with("# ") {
            // UNIT and EOF.
            Ok(())
        } else {
            writeln!(page, "{line}")
        };
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_served_only_on_request() {
        let accepted = |accept: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, value.parse().unwrap());
            }
            Format::accepted(&headers)
        };
        for classic in [
            &[][..],
            &["*/*"],
            &["text/html, */*;q=0.1"],
            &["text/plain"],
            &["application/openmetrics-text;q=0"],
            &["application/openmetrics-text;q=nonsense"],
            &["application/openmetrics-text; version=2.0.0, */*;q=0.1"],
            &["application/openmetrics-text;q=0.4,text/plain;version=0.0.4;q=0.5"],
            &["application/openmetrics-text;q=0.4", "text/plain"],
        ] {
            assert_eq!(accepted(classic), Format::Classic, "{classic:?}");
        }
        for open_metrics in [
            // The defaults of Prometheus 2 and 3.
            &[
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            ][..],
            &[
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
            ],
            &["application/openmetrics-text"],
            &["Application/OpenMetrics-Text; Version=1.0.0; Q=0.2, text/plain; q=0.1"],
            &["text/plain;q=0.1", "application/openmetrics-text"],
        ] {
            assert_eq!(accepted(open_metrics), Format::OpenMetrics, "{open_metrics:?}");
        }
    }

    #[test]
    fn the_classic_page_names_families_after_their_samples() {
        let open_metrics = "# HELP a_records Records.\n# TYPE a_records counter\na_records_total{reason=\"x # y\"} 1\n\
                            # HELP a_build Build.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                            # HELP a_time_seconds Time.\n# TYPE a_time_seconds histogram\n# UNIT a_time_seconds seconds\n\
                            a_time_seconds_sum 0.5\na_time_seconds_count 1\na_time_seconds_bucket{le=\"+Inf\"} 1\n\
                            # HELP a_up Up.\n# TYPE a_up gauge\na_up 1\n# EOF\n";
        let expected = "# HELP a_records_total Records.\n# TYPE a_records_total counter\na_records_total{reason=\"x # y\"} 1\n\
                        # HELP a_build_info Build.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
                        # HELP a_time_seconds Time.\n# TYPE a_time_seconds histogram\n\
                        a_time_seconds_sum 0.5\na_time_seconds_count 1\na_time_seconds_bucket{le=\"+Inf\"} 1\n\
                        # HELP a_up Up.\n# TYPE a_up gauge\na_up 1\n";
        assert_eq!(classic(open_metrics), expected);
    }
}
