//! The grammar of `.env`: a value is taken whole, or its line is refused. Nothing is substituted or truncated.
//!
//! ```text
//! # a comment, on a line of its own
//! NAME=as it is: $, \, " and # stay
//! NAME='as it is, also blanks at the ends'
//! NAME="the same, with \\ \" \' \$ \n \r \t"
//! ```
//!
//! A quoted secret may span several lines, as a PEM key does, unless one of these lines sets a variable: then a quote
//! was forgotten.
//!
//! The libraries for this substitute `$NAME`, process backslashes outside quotes, or cut a value at ` #`, any of which
//! mangles some passwords. Here ` #` begins a comment only where no value can contain it.

use super::Variable;

/// A file's values, in order, and its errors.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct File {
    pub(super) entries: Vec<Entry>,
    pub(super) problems: Vec<Broken>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) value: String,
    /// It is unquoted and looks like a reference to another variable.
    pub(super) has_reference: bool,
}

/// A refused line, without its text, which may contain a password.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) line: usize,
    /// The variable's name, if the line has one.
    pub(super) name: Option<String>,
    pub(super) why: String,
}

const FORM: &str = "expected NAME=value, or a comment that begins with #";

pub(super) fn parse(bytes: &[u8]) -> File {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
            let why = "not UTF-8: save the file as UTF-8".to_owned();
            let broken = Broken {
                line,
                name: None,
                why,
            };
            return File {
                entries: Vec::new(),
                problems: vec![broken],
            };
        }
    };
    let mut file = File::default();
    let mut rest = Rest {
        text: text.strip_prefix('\u{feff}').unwrap_or(text),
        line: 1,
    };
    while !rest.text.is_empty() {
        let line = rest.line;
        match entry(&mut rest) {
            Ok(Some((name, value, has_reference))) => file.entries.push(Entry {
                line,
                name,
                value,
                has_reference,
            }),
            Ok(None) => {}
            Err((name, why)) => {
                rest.skip_line();
                file.problems.push(Broken { line, name, why });
            }
        }
    }
    file
}

type Refused = (Option<String>, String);

/// Reads an entry; `None` for a line without one. After an error, `rest` is on the entry's first line or after it.
fn entry(rest: &mut Rest<'_>) -> Result<Option<(String, String, bool)>, Refused> {
    let line = rest.peek_line();
    let begin = line.trim_start_matches(BLANKS);
    if begin.is_empty() || begin.starts_with('#') {
        rest.skip_line();
        return Ok(None);
    }
    let (name, value) = assignment(line).ok_or((None, FORM.to_owned()))?;
    let variable = Variable::named(name);
    let refused = |why: &str| (Some(name.to_owned()), why.to_owned());
    let start = value.trim_start_matches(BLANKS);
    let mut has_reference = false;
    let value = match start.chars().next() {
        Some(quote @ ('\'' | '"')) => {
            let mut quoted = rest.after(line.len() - start.len() + 1);
            let value = read_quoted(&mut quoted, quote, variable).map_err(|why| refused(&why))?;
            let tail = quoted.peek_line();
            let trimmed = tail.trim_matches(BLANKS);
            if !(trimmed.is_empty() || trimmed.starts_with('#') && tail.starts_with(BLANKS)) {
                return Err(refused("only a comment may follow the closing quote"));
            }
            *rest = quoted;
            value
        }
        _ => {
            has_reference = is_reference_in(value);
            unquoted(variable, value).map_err(|why| refused(&why))?
        }
    };
    if value.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return Err(refused("control characters are not accepted"));
    }
    rest.skip_line();
    Ok(Some((name.to_owned(), value, has_reference)))
}

const BLANKS: [char; 2] = [' ', '\t'];

/// A line's name, and the text after the equals sign.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let mut name = name.trim_matches(BLANKS);
    if let Some(exported) = name
        .strip_prefix("export")
        .filter(|rest| rest.starts_with(BLANKS))
    {
        name = exported.trim_start_matches(BLANKS);
    }
    is_name(name).then_some((name, value))
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Whether there is a `$NAME` or `${NAME}`, which other readers of such files would substitute.
fn is_reference_in(value: &str) -> bool {
    value.split('$').skip(1).any(|rest| {
        let name = rest.strip_prefix('{').unwrap_or(rest);
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    })
}

fn unquoted(variable: Option<&Variable>, value: &str) -> Result<String, String> {
    const QUOTE_IT: &str = "put the value in single quotes, and a comment on a line of its own";
    let is_free_text = variable.is_some_and(Variable::is_free_text);
    if value.contains('\r') {
        return Err("a carriage return inside a value is not accepted".to_owned());
    }
    let comment = value
        .match_indices('#')
        .map(|(at, _)| at)
        .find(|&at| value[..at].ends_with(BLANKS));
    let value = match comment {
        None => value,
        Some(_) if is_free_text => {
            return Err(format!(
                "a # after a blank may be a comment or part of the value: {QUOTE_IT}"
            ));
        }
        Some(at) => &value[..at],
    };
    let trimmed = value.trim_matches(BLANKS);
    if trimmed.len() != value.len() && is_free_text {
        return Err(
            "the value begins or ends with a blank: remove it, or put the value in single quotes".to_owned(),
        );
    }
    Ok(trimmed.to_owned())
}

/// Reads up to the closing quote; the opening one has been read.
fn read_quoted(rest: &mut Rest<'_>, quote: char, variable: Option<&Variable>) -> Result<String, String> {
    let may_go_on = variable.is_none_or(|variable| variable.secret);
    let mut value = String::new();
    let mut characters = rest.text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            _ if c == quote => {
                *rest = rest.after(at + 1);
                return Ok(value);
            }
            '\n' if !may_go_on => return Err("its quote is not closed on the same line".to_owned()),
            '\n' if sets_a_variable(&rest.text[at + 1..]) => {
                return Err(
                    "its quote is not closed before the next line that sets a variable (a line break may be \
                     written \\n in double quotes)"
                        .to_owned(),
                );
            }
            '\\' if quote == '"' => value.push(match characters.next() {
                Some((_, c @ ('\\' | '"' | '\'' | '$'))) => c,
                Some((_, 'n')) => '\n',
                Some((_, 'r')) => '\r',
                Some((_, 't')) => '\t',
                // Another program's variable, whose rules may allow it.
                Some((_, c)) if variable.is_none() => c,
                _ => {
                    return Err(
                        "in double quotes a backslash is followed by one of \\ \" ' $ n r t: \
                         double it, or use single quotes"
                            .to_owned(),
                    );
                }
            }),
            // Line breaks are the same whatever the file uses.
            '\r' if rest.text[at..].starts_with("\r\n") => {}
            _ => value.push(c),
        }
    }
    Err("its quote is never closed".to_owned())
}

/// Whether the first line of the text begins another entry. A PEM key may end with equals signs.
fn sets_a_variable(text: &str) -> bool {
    let line = text.lines().next().unwrap_or_default();
    let ends_a_key = |value: &str| matches!(value.trim_end_matches(['\'', '"']), "" | "=");
    assignment(line).is_some_and(|(name, value)| Variable::named(name).is_some() || !ends_a_key(value))
}

/// The text that is not yet read.
#[derive(Clone, Copy)]
struct Rest<'a> {
    text: &'a str,
    line: usize,
}

impl<'a> Rest<'a> {
    /// To the end of the line, without it.
    fn peek_line(&self) -> &'a str {
        let line = self.text.split('\n').next().unwrap_or_default();
        line.strip_suffix('\r').unwrap_or(line)
    }

    fn skip_line(&mut self) {
        let end = self.text.find('\n').map_or(self.text.len(), |at| at + 1);
        *self = self.after(end);
    }

    fn after(&self, bytes: usize) -> Self {
        let (read, text) = self.text.split_at(bytes);
        Self {
            text,
            line: self.line + read.matches('\n').count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value_of(line: &str) -> Result<String, String> {
        let mut file = parse(line.as_bytes());
        match (file.entries.pop(), file.problems.pop()) {
            (Some(entry), None) if file.entries.is_empty() => Ok(entry.value),
            (None, Some(broken)) if file.problems.is_empty() => {
                Err(format!("{}: {}", broken.name.unwrap_or_default(), broken.why))
            }
            other => panic!("{line:?}: {other:?}"),
        }
    }

    #[test]
    fn a_value_is_taken_whole() {
        for (line, value) in [
            ("REDIS_PASSWORD=pa$ss", "pa$ss"),
            ("REDIS_PASSWORD=pa${ss}x", "pa${ss}x"),
            ("REDIS_PASSWORD=$", "$"),
            ("REDIS_PASSWORD=pa#ss", "pa#ss"),
            ("REDIS_PASSWORD=#pass", "#pass"),
            ("REDIS_PASSWORD=pa\\ss\\n", "pa\\ss\\n"),
            ("REDIS_PASSWORD=pa\"ss\"", "pa\"ss\""),
            ("REDIS_PASSWORD=it's", "it's"),
            ("REDIS_PASSWORD=a b", "a b"),
            ("REDIS_PASSWORD=a=b==", "a=b=="),
            ("REDIS_PASSWORD=pässwörd", "pässwörd"),
            ("REDIS_PASSWORD=' a #b$c\\ '", " a #b$c\\ "),
            ("REDIS_PASSWORD='a\"b'", "a\"b"),
            ("REDIS_PASSWORD=\"a'b$c #d\"", "a'b$c #d"),
            (r#"REDIS_PASSWORD="a\\b\"c\$d\n\t\r\'""#, "a\\b\"c$d\n\t\r'"),
            ("REDIS_PASSWORD='a' # a comment", "a"),
            ("REDIS_PASSWORD=''", ""),
            ("REDIS_PASSWORD=", ""),
            ("REDIS_PASSWORD='one\ntwo'", "one\ntwo"),
            ("REDIS_PASSWORD='one\r\ntwo'\r\n", "one\ntwo"),
            ("REDIS_PASSWORD=pass\r\n", "pass"),
            ("\u{feff}REDIS_PASSWORD=pass", "pass"),
            ("export REDIS_PASSWORD=pass", "pass"),
            ("  export\tREDIS_PASSWORD =pass", "pass"),
            ("PORT=8082 # a comment", "8082"),
            ("PORT = 8082 ", "8082"),
            ("NODE_ID=a#b", "a#b"),
            ("exported=1", "1"),
        ] {
            assert_eq!(value_of(line).as_deref(), Ok(value), "{line}");
        }
    }

    #[test]
    fn a_line_is_refused_by_its_name() {
        for line in [
            "REDIS_PASSWORD=a #b",
            "REDIS_URL=redis://h #b",
            "KAFKA_SASL_USERNAME=a\t#b",
            "REDIS_PASSWORD=trailing ",
            "REDIS_PASSWORD= leading",
            "REDIS_PASSWORD=  ",
            "KAFKA_SASL_USERNAME=bob ",
            "KAFKA_SSL_CA= /ca.pem",
            "REDIS_PASSWORD='a'b",
            "REDIS_PASSWORD='a'#b",
            "REDIS_PASSWORD='a' b",
            "REDIS_PASSWORD='never closed",
            "REDIS_PASSWORD=\"a\\",
            "REDIS_PASSWORD=\"C:\\dir\"",
            "REDIS_PASSWORD=\"never closed\nPORT=1\n",
            "REDIS_PASSWORD=a\rb",
            "REDIS_PASSWORD=a\0b",
        ] {
            let refused = match line {
                // The lines after an unclosed quote are read as entries.
                _ if line.contains("PORT=1") => {
                    let file = parse(line.as_bytes());
                    format!("{}: ", file.problems[0].name.as_deref().unwrap())
                }
                _ => value_of(line).unwrap_err(),
            };
            let name = line.split_once('=').unwrap().0;
            assert!(refused.starts_with(&format!("{name}: ")), "{line}: {refused}");
        }
        for line in [
            "no equals sign",
            "A B=c",
            "=c",
            "1A=c",
            "export A",
            "REDIS_PASSWORD: a=b",
        ] {
            assert_eq!(value_of(line), Err(format!(": {FORM}")), "{line}");
        }
    }

    #[test]
    fn a_quote_that_is_not_closed_swallows_no_line() {
        for (text, broken, kept) in [
            (
                "PORT='8082\nREDIS_PASSWORD=hunter2'\n",
                &[1][..],
                "REDIS_PASSWORD",
            ),
            ("PORT='8082\n# it's 8082\nWS_PORT=1", &[1], "WS_PORT"),
            ("REDIS_PASSWORD='hunter2\nPORT=1\n# it's hunter2'", &[1], "PORT"),
            (
                "REDIS_PASSWORD=\"a\r\n export SOMEBODYS='hunter2\"'\r\n",
                &[1],
                "SOMEBODYS",
            ),
            ("REDIS_PASSWORD='a\nREDIS_HOST='\nPORT=1", &[1, 2], "PORT"),
            ("REDIS_PASSWORD='a\nREDIS_HOST=\n'\n", &[1, 3], "REDIS_HOST"),
        ] {
            let file = parse(text.as_bytes());
            let lines: Vec<_> = file.problems.iter().map(|problem| problem.line).collect();
            assert_eq!(lines, broken, "{text:?}: {file:?}");
            let names: Vec<_> = file.entries.iter().map(|entry| entry.name.as_str()).collect();
            assert_eq!(names, [kept], "{text:?}");
            assert!(!format!("{:?}", file.problems).contains("hunter2"), "{text:?}");
        }
        // A PEM key has lines that end with an equals sign.
        let key = "-----BEGIN PUBLIC KEY-----\nMIIB\nAQ==\nQ=\n-----END PUBLIC KEY-----";
        assert_eq!(value_of(&format!("REDIS_PASSWORD='{key}'")).as_deref(), Ok(key));
    }

    #[test]
    fn lines_are_counted() {
        let text = "A=1\n\n# x\nB='one\ntwo'\nbroken\nC=3\r\nD='x\nE=5\n";
        let file = parse(text.as_bytes());
        let entries: Vec<_> = file.entries.iter().map(|e| (e.line, e.name.as_str())).collect();
        assert_eq!(entries, [(1, "A"), (4, "B"), (7, "C"), (9, "E")]);
        let problems: Vec<_> = file.problems.iter().map(|b| b.line).collect();
        assert_eq!(problems, [6, 8]);
        assert_eq!(parse(b"A=1\nB=\xff\n").problems[0].line, 2);
    }

    proptest! {
        /// Any password survives in single quotes, if it contains none, and escaped in double quotes.
        #[test]
        fn a_quoted_value_survives(value in "[^\\p{C}']{0,40}") {
            let line = format!("REDIS_PASSWORD='{value}' # x");
            prop_assert_eq!(value_of(&line), Ok(value.clone()));
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            let line = format!("REDIS_PASSWORD=\"{escaped}\"\r\n");
            prop_assert_eq!(value_of(&line), Ok(value));
        }

        /// Unquoted, it survives or is refused.
        #[test]
        fn an_unquoted_value_survives_or_is_refused(value in "[ #$\\\\'\"=a-c\t\r]{1,12}") {
            match value_of(&format!("REDIS_PASSWORD={value}\n")) {
                Ok(read) => {
                    let unquoted = value.strip_suffix('\r').unwrap_or(&value);
                    let is_blank = unquoted.trim_matches(BLANKS).is_empty();
                    let is_quoted = value.trim_start_matches(BLANKS).starts_with(['\'', '"']);
                    prop_assert!(read == unquoted || is_quoted || is_blank, "{value:?} was read as {read:?}");
                }
                Err(refused) => prop_assert!(refused.starts_with("REDIS_PASSWORD: "), "{refused}"),
            }
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[A='\"\\\\\r\n #x\u{feff}é]{0,60}") {
            parse(text.as_bytes());
        }
    }
}
