//! Small XML documents as trees.
//!
//! Invariant: text comes out as it was written, white space and control characters included, since
//! it may be a key. It refuses document types, entities of their own, and depths that no answer
//! of an origin has.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use store::{Error, ErrorKind, Result};

/// Deepest nesting that is read; the answers of both clouds need six.
const MAX_DEPTH: usize = 16;

/// One element.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name without a namespace prefix.
    pub(crate) name: String,
    /// Its attributes, decoded.
    attributes: Vec<(String, String)>,
    /// Its own text, decoded and joined.
    pub(crate) text: String,
    children: Vec<Node>,
}

impl Node {
    /// The root of a document. [`ErrorKind::Corrupted`] for what is none: an origin promised XML.
    pub(crate) fn parse(document: &[u8]) -> Result<Self> {
        Self::try_parse(document).map_err(|why| {
            Error::new(ErrorKind::Corrupted, format!("answer of the origin is no XML: {why}"))
        })
    }

    fn try_parse(document: &[u8]) -> std::result::Result<Self, String> {
        let text = std::str::from_utf8(document).map_err(|error| error.to_string())?;
        // Azure begins its documents with a byte order mark.
        let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
        let mut open: Vec<Node> = vec![Node::default()];
        loop {
            let event = reader.read_event().map_err(|error| error.to_string())?;
            let top = open.last_mut().expect("the outermost node is never closed");
            match event {
                Event::Start(tag) => {
                    let node = element(&tag)?;
                    if open.len() > MAX_DEPTH {
                        return Err(format!("deeper than {MAX_DEPTH} elements"));
                    }
                    open.push(node);
                }
                Event::Empty(tag) => top.children.push(element(&tag)?),
                Event::End(_) => {
                    let done = open.pop().expect("looked at above");
                    let Some(parent) = open.last_mut() else { return Err("stray end".into()) };
                    parent.children.push(done);
                }
                Event::Text(text) => {
                    top.text.push_str(&text.decode().map_err(|error| error.to_string())?);
                }
                Event::CData(text) => {
                    top.text.push_str(&text.decode().map_err(|error| error.to_string())?);
                }
                Event::GeneralRef(name) => {
                    let character = name.resolve_char_ref().map_err(|error| error.to_string())?;
                    if let Some(character) = character {
                        top.text.push(character);
                    } else {
                        let name = name.decode().map_err(|error| error.to_string())?;
                        let known = quick_xml::escape::resolve_predefined_entity(&name);
                        top.text.push_str(known.ok_or_else(|| format!("unknown entity {name}"))?);
                    }
                }
                Event::DocType(_) => return Err("a document type".into()),
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
                Event::Eof => break,
            }
        }
        let mut outermost = open.pop().expect("never closed");
        if !open.is_empty() {
            return Err("it ends early".into());
        }
        match outermost.children.len() {
            1 => Ok(outermost.children.remove(0)),
            count => Err(format!("{count} root elements")),
        }
    }

    /// The children with a name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Node> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Every child.
    pub(crate) fn children(&self) -> &[Node] {
        &self.children
    }

    /// The first child with a name.
    pub(crate) fn child(&self, name: &str) -> Option<&Node> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The text of the first child with a name.
    pub(crate) fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }

    /// An attribute's value.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn element(tag: &BytesStart<'_>) -> std::result::Result<Node, String> {
    let name = String::from_utf8_lossy(tag.local_name().as_ref()).into_owned();
    let mut attributes = Vec::new();
    for attribute in tag.attributes().flatten() {
        let key = String::from_utf8_lossy(attribute.key.local_name().as_ref()).into_owned();
        let value = String::from_utf8_lossy(&attribute.value).into_owned();
        let value = quick_xml::escape::unescape(&value).map_err(|error| error.to_string())?;
        attributes.push((key, value.into_owned()));
    }
    Ok(Node { name, attributes, ..Node::default() })
}

/// Text made fit to stand between tags.
pub(crate) fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn documents_are_read_as_written() {
        let text = "\u{feff}<?xml version='1.0'?><a:L xmlns:a='x'><Name Encoded='true'> b &amp;&#x9;\
                    c\n</Name><Name/><Deep><Name>d</Name></Deep></a:L>";
        let root = Node::parse(text.as_bytes()).unwrap();
        assert_eq!(root.name, "L");
        assert_eq!(root.text_of("Name"), Some(" b &\tc\n"));
        assert_eq!(root.child("Name").unwrap().attribute("Encoded"), Some("true"));
        assert_eq!(root.all("Name").count(), 2);
        assert_eq!(root.child("Deep").unwrap().text_of("Name"), Some("d"));
    }

    #[test]
    fn nonsense_is_refused() {
        let deep = "<a>".repeat(40);
        for bad in
            ["", "<a>", "<a></b>", "<a/><b/>", "<a>&own;</a>", "</a>", "<!DOCTYPE x><a/>", &deep]
        {
            let error = Node::parse(bad.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupted, "{bad}");
        }
        assert!(Node::parse(b"<a>\xff</a>").is_err());
    }

    proptest! {
        #[test]
        fn keys_survive(key in "[ -~\u{e9}\u{1}\t\n\u{1f680}]{0,40}") {
            let text = format!("<L><Key>{}</Key></L>", escape(&key));
            let root = Node::parse(text.as_bytes()).unwrap();
            prop_assert_eq!(root.text_of("Key"), Some(key.as_str()));
        }

        #[test]
        fn no_input_panics(text in "(<|>|/|a|&|;|#|!|\\[|\\PC){0,40}") {
            _ = Node::parse(text.as_bytes());
        }
    }
}
