//! Server-sent events: the parser of the WHATWG HTML standard (section 9.2.6), with bounds.

use crate::limits::MAX_SSE_EVENT;
use std::collections::VecDeque;

/// A dispatched event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// `message` when the stream names none.
    pub(super) event: String,
    /// The data lines, joined by line feeds.
    pub(super) data: String,
}

/// Why a byte stream is no event stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SseError {
    #[error("an event is larger than {MAX_SSE_EVENT} bytes")]
    TooLong,
    #[error("an event stream is UTF-8")]
    NotUtf8,
}

/// Takes bytes as they come, gives messages as they are complete. Ids are not kept: ours also stand in the data.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The line so far.
    line: Vec<u8>,
    event: String,
    data: String,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_return: bool,
    /// The first line has passed, and with it the place of a byte order mark.
    begun: bool,
    messages: VecDeque<Message>,
}

impl Parser {
    /// Takes the next bytes.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), SseError> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && first == b'\n' {
                bytes = bytes.get(1..).unwrap_or_default();
                continue;
            }
            let end = bytes.iter().position(|b| matches!(b, b'\r' | b'\n'));
            let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if self.line.len() + self.data.len() + line.len() > MAX_SSE_EVENT {
                return Err(SseError::TooLong);
            }
            self.line.extend_from_slice(line);
            bytes = rest;
            if let Some((&terminator, rest)) = rest.split_first() {
                self.after_return = terminator == b'\r';
                bytes = rest;
                self.end_line()?;
            }
        }
        Ok(())
    }

    /// The next complete message.
    pub(super) fn next(&mut self) -> Option<Message> {
        self.messages.pop_front()
    }

    fn end_line(&mut self) -> Result<(), SseError> {
        let bytes = std::mem::take(&mut self.line);
        let mut line = std::str::from_utf8(&bytes).map_err(|_| SseError::NotUtf8)?;
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix('\u{feff}').unwrap_or(line);
        }
        if line.is_empty() {
            self.dispatch();
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            // An empty field is a comment; `id` and `retry` are the reader's business elsewhere.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) {
        let event = std::mem::take(&mut self.event);
        let mut data = std::mem::take(&mut self.data);
        if data.pop().is_none() {
            return;
        }
        let event = if event.is_empty() { "message".into() } else { event };
        self.messages.push_back(Message { event, data });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Message>, SseError> {
        let mut parser = Parser::default();
        let mut messages = Vec::new();
        for chunk in chunks {
            parser.push(chunk)?;
            messages.extend(std::iter::from_fn(|| parser.next()));
        }
        Ok(messages)
    }

    fn message(event: &str, data: &str) -> Message {
        Message { event: event.into(), data: data.into() }
    }

    #[test]
    fn the_examples_of_the_standard() {
        let stocks: &[u8] = b"data: YHOO\ndata: +2\ndata: 10\n\n";
        assert_eq!(parse([stocks]).unwrap(), [message("message", "YHOO\n+2\n10")]);
        let mixed: &[u8] =
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        let expected = ["first event", "second event", " third event"].map(|d| message("message", d));
        assert_eq!(parse([mixed]).unwrap(), expected);
        let empty: &[u8] = b"data\n\ndata\ndata\n\ndata:";
        assert_eq!(parse([empty]).unwrap(), [message("message", ""), message("message", "\n")]);
        let named: &[u8] = b"\xef\xbb\xbfevent: add\r\ndata: 73857293\r\rdata:test\n\nevent: lost\n\ndata:unnamed\n\n";
        let expected = [message("add", "73857293"), message("message", "test"), message("message", "unnamed")];
        assert_eq!(parse([named]).unwrap(), expected);
    }

    #[test]
    fn an_event_that_never_ends_is_refused() {
        let mut parser = Parser::default();
        let chunk = vec![b'a'; MAX_SSE_EVENT];
        assert_eq!(parser.push(&chunk), Ok(()));
        assert_eq!(parser.push(b"a"), Err(SseError::TooLong));
        let mut parser = Parser::default();
        let lines = b"data:aaaaaaaaaa\n".repeat(MAX_SSE_EVENT / 10);
        assert_eq!(parser.push(&lines), Err(SseError::TooLong));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(parse([&b"data: \xff\n"[..]]), Err(SseError::NotUtf8));
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_makes_no_difference(
            events in proptest::collection::vec(("[a-zü]{1,4}", proptest::collection::vec("[^\r\n\0]{0,8}", 1..4)), 0..6),
            ending in prop_oneof![Just("\n"), Just("\r"), Just("\r\n")],
            cuts in proptest::collection::vec(1_usize..7, 1..40),
            comment: bool,
        ) {
            let mut bytes = Vec::new();
            for (name, lines) in &events {
                if comment {
                    bytes.extend_from_slice(format!(": keep-alive{ending}{ending}").as_bytes());
                }
                bytes.extend_from_slice(format!("event: {name}{ending}id: 7{ending}").as_bytes());
                for line in lines {
                    bytes.extend_from_slice(format!("data: {line}{ending}").as_bytes());
                }
                bytes.extend_from_slice(ending.as_bytes());
            }
            let expected: Vec<_> = events.iter().map(|(name, lines)| message(name, &lines.join("\n"))).collect();
            let mut rest = &bytes[..];
            let mut chunks = Vec::new();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            prop_assert_eq!(parse(chunks).unwrap(), expected);
        }

        #[test]
        fn any_bytes_are_survived(chunks: Vec<Vec<u8>>) {
            let _ = parse(chunks.iter().map(Vec::as_slice));
        }
    }
}
