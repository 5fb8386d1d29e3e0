//! PEM (RFC 7468), as far as public keys need it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";

/// The blocks of a text: their labels and contents. A line break may also be written `\n`, as in a variable's one line.
pub(super) fn blocks(text: &str) -> Result<Vec<(&str, Vec<u8>)>, String> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(BEGIN) {
        let (label, after) = after.split_once(DASHES).ok_or("the PEM block has no label")?;
        let end = format!("{DASHES}END {label}{DASHES}");
        let (content, after) = after.split_once(&end).ok_or("the PEM block has no end")?;
        let content: String = content.replace("\\n", "").split_whitespace().collect();
        let content = STANDARD
            .decode(content)
            .map_err(|_| "the PEM block is not base64")?;
        blocks.push((label, content));
        rest = after;
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_among_other_text() {
        let text = "a comment\n-----BEGIN A-----\nAQ\r\nI=\n-----END A-----\n-----BEGIN B-----\\nAw==\\n-----END B-----";
        assert_eq!(blocks(text).unwrap(), [("A", vec![1, 2]), ("B", vec![3])]);
        assert!(blocks("none").unwrap().is_empty());
        for bad in [
            "-----BEGIN A",
            "-----BEGIN A-----\nAQI=",
            "-----BEGIN A-----?-----END A-----",
        ] {
            assert!(blocks(bad).is_err(), "{bad}");
        }
    }
}
