//! The body of a request: read whole, decompressed, bounded.

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use crate::turn::Refusal;

/// Time for the whole request body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_mins(1);
/// Largest window of a zstd body, as a power of two: 8 MiB, the most that HTTP allows (RFC 9659). A few bytes could make
/// the decoder take 128 MiB otherwise, before it has decoded anything.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// First room for a request body; it grows with what really arrives, whatever the client announced.
const BODY_BYTES_FIRST: usize = 1024 * 1024;

/// Reads and decompresses the body, within its limits.
pub(crate) async fn read(request: Request<Incoming>, bytes_max: u64) -> Result<Bytes, Refusal> {
    let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    let too_large = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!(
                "the request is larger than {bytes_max} bytes; `worker.body_bytes_max` in supervisor.toml sets this limit"
            ),
        )
    };
    let (head, mut body) = request.into_parts();
    let announced = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    if announced.is_some_and(|length| length > bytes_max) {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(BODY_BYTES_FIRST));
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Refusal::new(StatusCode::BAD_REQUEST, "body_incomplete", format!("the request body broke off: {error}"))
            })?;
            if let Ok(data) = frame.into_data() {
                if bytes.len() + data.len() > bytes_max {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok(())
    };
    tokio::time::timeout(BODY_TIMEOUT, read).await.map_err(|_| {
        let message = format!("the request body did not arrive within {} s", BODY_TIMEOUT.as_secs());
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_late", message)
    })??;
    let encoding = head.headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes().to_ascii_lowercase());
    decompress(bytes, encoding.as_deref(), bytes_max).map_err(|problem| match problem {
        Decompress::TooLarge => too_large(),
        Decompress::Unknown => Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            "the content encoding of the request is not one of identity, gzip, zstd",
        ),
        Decompress::Damaged(error) => {
            Refusal::new(StatusCode::BAD_REQUEST, "invalid_request", format!("the request body is damaged: {error}"))
        }
    })
}

enum Decompress {
    TooLarge,
    Unknown,
    Damaged(std::io::Error),
}

fn decompress(bytes: Vec<u8>, encoding: Option<&[u8]>, bytes_max: usize) -> Result<Bytes, Decompress> {
    let bounded = |reader: &mut dyn Read| {
        let mut plain = Vec::new();
        reader.take(bytes_max as u64 + 1).read_to_end(&mut plain).map_err(Decompress::Damaged)?;
        if plain.len() > bytes_max { Err(Decompress::TooLarge) } else { Ok(exact(plain)) }
    };
    match encoding {
        None | Some(b"identity" | b"") => Ok(exact(bytes)),
        Some(b"gzip") => bounded(&mut flate2::read::MultiGzDecoder::new(&bytes[..])),
        Some(b"zstd") => {
            let mut decoder = zstd::Decoder::new(&bytes[..]).map_err(Decompress::Damaged)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(Decompress::Damaged)?;
            bounded(&mut decoder)
        }
        Some(_) => Err(Decompress::Unknown),
    }
}

/// `bytes` without the room it has grown into: the body may be kept as long as its answer flows.
fn exact(mut bytes: Vec<u8>) -> Bytes {
    bytes.shrink_to_fit();
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const BYTES_MAX: usize = 1_000;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    #[test]
    fn bodies_are_decompressed() {
        for (bytes, encoding) in [
            (b"text".to_vec(), None),
            (b"text".to_vec(), Some(&b"identity"[..])),
            (gzip(b"text"), Some(b"gzip")),
            (zstd(b"text"), Some(b"zstd")),
        ] {
            assert!(matches!(decompress(bytes, encoding, BYTES_MAX), Ok(plain) if plain == "text"), "{encoding:?}");
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let bomb = vec![0; 100 * BYTES_MAX];
        for (bytes, encoding) in [(gzip(&bomb), b"gzip"), (zstd(&bomb), b"zstd")] {
            assert!(bytes.len() < BYTES_MAX);
            assert!(matches!(decompress(bytes, Some(encoding), BYTES_MAX), Err(Decompress::TooLarge)));
        }
        let full = vec![b'x'; BYTES_MAX];
        assert!(decompress(gzip(&full), Some(b"gzip"), BYTES_MAX).is_ok());
    }

    #[test]
    fn a_window_that_http_does_not_allow_is_refused() {
        for (window_log, is_allowed) in [(ZSTD_WINDOW_LOG_MAX, true), (ZSTD_WINDOW_LOG_MAX + 1, false)] {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            encoder.write_all(b"text").unwrap();
            let bytes = encoder.finish().unwrap();
            let decompressed = decompress(bytes, Some(b"zstd"), BYTES_MAX);
            assert_eq!(decompressed.is_ok(), is_allowed, "{window_log}");
        }
    }

    #[test]
    fn what_cannot_be_decompressed_is_refused() {
        assert!(matches!(decompress(b"no".to_vec(), Some(b"gzip"), BYTES_MAX), Err(Decompress::Damaged(_))));
        assert!(matches!(decompress(b"no".to_vec(), Some(b"zstd"), BYTES_MAX), Err(Decompress::Damaged(_))));
        assert!(matches!(decompress(b"no".to_vec(), Some(b"br"), BYTES_MAX), Err(Decompress::Unknown)));
    }
}
