//! Templates with placeholders for a session, a user, a number and the [marker](crate::message::marker).

use anyhow::{Result, ensure};

const PLACES: [(&str, Place); 4] = [
    ("{session}", Place::Session),
    ("{user}", Place::User),
    ("{number}", Place::Number),
    ("{marker}", Place::Marker),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Session,
    User,
    Number,
    Marker,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Place(Place),
}

#[derive(Clone, Debug)]
pub struct Template(Vec<Piece>);

/// The values of the placeholders.
#[derive(Clone, Copy, Default)]
pub struct Values<'a> {
    pub session: &'a str,
    pub user: &'a str,
    pub number: u64,
    pub marker: &'a [u8],
}

impl Template {
    /// Any other braces are text: JSON has many.
    pub fn parse(mut text: &str) -> Self {
        let mut pieces = Vec::new();
        while !text.is_empty() {
            let found = PLACES
                .iter()
                .filter_map(|(name, place)| Some((text.find(name)?, name.len(), *place)));
            match found.min_by_key(|(at, ..)| *at) {
                Some((0, length, place)) => {
                    pieces.push(Piece::Place(place));
                    text = &text[length..];
                }
                next => {
                    let (before, rest) = text.split_at(next.map_or(text.len(), |(at, ..)| at));
                    pieces.push(Piece::Text(before.to_owned()));
                    text = rest;
                }
            }
        }
        Self(pieces)
    }

    /// As [`Template::parse`], for messages: without a marker nothing could be measured.
    pub fn with_marker(text: &str) -> Result<Self> {
        let template = Self::parse(text);
        ensure!(
            template.0.contains(&Piece::Place(Place::Marker)),
            "no {{marker}} in {text:?}"
        );
        Ok(template)
    }

    pub fn render(&self, out: &mut Vec<u8>, values: Values<'_>) {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Place(Place::Session) => out.extend_from_slice(values.session.as_bytes()),
                Piece::Place(Place::User) => out.extend_from_slice(values.user.as_bytes()),
                Piece::Place(Place::Number) => out.extend_from_slice(values.number.to_string().as_bytes()),
                Piece::Place(Place::Marker) => out.extend_from_slice(values.marker),
            }
        }
    }

    pub fn text(&self, values: Values<'_>) -> String {
        let mut out = Vec::new();
        self.render(&mut out, values);
        String::from_utf8_lossy(&out).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_and_other_braces_stay() {
        let template = Template::parse(r#"{"a":{},"s":"{session}","u":"{user}{number}"}{marker}"#);
        let values = Values {
            session: "s1",
            user: "u",
            number: 7,
            marker: b"#",
        };
        assert_eq!(template.text(values), r##"{"a":{},"s":"s1","u":"u7"}#"##);
        assert!(Template::with_marker("{session}").is_err());
    }
}
