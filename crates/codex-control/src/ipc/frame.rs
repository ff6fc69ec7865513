//! The bytes of a message: a 32-bit big-endian length, then the message in bincode's standard configuration.
//!
//! The only file that knows bincode. Both ends are our own programs of the same version, lengths are checked before
//! anything is allocated, and golden bytes in the tests hold the encoding fast, so that another encoder of the same
//! bytes can take its place here. The few bytes that other versions have to understand, too ([`greeting`]), are held fast
//! for good.

use std::marker::PhantomData;

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::{Decoder, Encoder, LengthDelimitedCodec};

use super::Greeting;

/// Largest message: an assignment with many models is tens of kilobytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<FRAME_BYTES_MAX>,
> = bincode::config::standard().with_limit::<FRAME_BYTES_MAX>();

/// Why a frame cannot be sent or read. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed, or a length was beyond [`FRAME_BYTES_MAX`].
    #[error("the worker socket failed")]
    Io(#[from] std::io::Error),
    /// The message cannot be written.
    #[error("a message cannot be encoded")]
    Encode(#[from] bincode::error::EncodeError),
    /// The bytes are no message of this version.
    #[error("a frame is not a message of this version")]
    Decode(#[from] bincode::error::DecodeError),
    /// There are bytes behind the message.
    #[error("a frame has {0} bytes too many")]
    Trailing(usize),
}

/// Reads messages of type `In` and writes messages of type `Out`.
pub struct Codec<In, Out> {
    lengths: LengthDelimitedCodec,
    types: PhantomData<fn(Out) -> In>,
}

impl<In, Out> Default for Codec<In, Out> {
    fn default() -> Self {
        Self { lengths: lengths(), types: PhantomData }
    }
}

/// Cuts bytes into the payloads of frames, of whatever version they are.
pub fn lengths() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES_MAX).new_codec()
}

/// The worker's end.
pub type WorkerCodec = Codec<super::ToWorker, super::FromWorker>;
/// The supervisor's end.
pub type SupervisorCodec = Codec<super::FromWorker, super::ToWorker>;

/// The payload of one frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    Ok(bincode::serde::encode_to_vec(message, CONFIG)?)
}

/// Reads the payload of one frame.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    let (message, read) = bincode::serde::decode_from_slice(payload, CONFIG)?;
    if read == payload.len() { Ok(message) } else { Err(FrameError::Trailing(payload.len() - read)) }
}

/// Reads the beginning of a Hello of any version; `None` if it is something else.
pub fn greeting(payload: &[u8]) -> Option<Greeting> {
    /// [`super::FromWorker`], as far as all versions have it.
    #[derive(serde::Deserialize)]
    enum First {
        Hello(Greeting),
    }
    let (First::Hello(greeting), _) = bincode::serde::decode_from_slice(payload, CONFIG).ok()?;
    Some(greeting)
}

impl<In: DeserializeOwned, Out> Decoder for Codec<In, Out> {
    type Item = In;
    type Error = FrameError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<In>, FrameError> {
        match self.lengths.decode(buffer)? {
            Some(payload) => decode(&payload).map(Some),
            None => Ok(None),
        }
    }
}

impl<In, Out: Serialize> Encoder<Out> for Codec<In, Out> {
    type Error = FrameError;

    fn encode(&mut self, message: Out, buffer: &mut BytesMut) -> Result<(), FrameError> {
        Ok(self.lengths.encode(Bytes::from(encode(&message)?), buffer)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::*;
    use super::*;

    #[test]
    fn the_encoding_is_held_fast() {
        assert_eq!(encode(&ToWorker::Drain { deadline_ms: 5000 }).unwrap(), [1, 251, 136, 19]);
        let ready = FromWorker::Ready { address: "127.0.0.1:41017".parse().unwrap() };
        assert_eq!(encode(&ready).unwrap(), [1, 0, 127, 0, 0, 1, 251, 57, 160]);
        assert_eq!(decode::<FromWorker>(&[1, 0, 127, 0, 0, 1, 251, 57, 160]).unwrap(), ready);
    }

    /// These bytes never change: workers that serve were built before whatever supervises them now.
    #[test]
    fn what_all_versions_understand_is_held_fast_for_good() {
        let theirs = [0, 251, 0, 1, 3, b'z', b'a', b'i', 7, 0xff, 0xff, 0xff];
        let greeting_256 = Greeting { version: 256, endpoint: "zai".parse().unwrap(), generation: 7 };
        assert_eq!(greeting(&theirs), Some(greeting_256), "whatever stands behind it");
        let hello = Hello {
            version: VERSION,
            endpoint: "zai".parse().unwrap(),
            generation: 7,
            identity: crate::process::own_identity().unwrap(),
            build: "1".to_owned(),
            serving: None,
        };
        let payload = encode(&FromWorker::Hello(hello)).unwrap();
        assert_eq!(payload[..7], [0, 3, 3, b'z', b'a', b'i', 7]);
        assert_eq!(greeting(&payload).map(|greeting| greeting.version), Some(VERSION));
        assert_eq!(greeting(&encode(&FromWorker::Drained).unwrap()), None);
        assert_eq!(greeting(&[0, 3, 3, b'z']), None);
        assert_eq!(encode(&ToWorker::Drain { deadline_ms: 600_000 }).unwrap(), [1, 252, 192, 39, 9, 0]);
        let mut framed = BytesMut::new();
        WorkerCodec::default().encode(FromWorker::Drained, &mut framed).unwrap();
        assert_eq!(framed, [0, 0, 0, 1, 5][..]);
    }

    #[test]
    fn an_assignment_survives_the_socket() {
        let text = "[[endpoint]]\nid = \"z\"\npreset = \"zai-coding\"\nheaders = { a = \"b\" }\n[[endpoint.model]]\nid = \"m\"\n";
        let settings = crate::settings::Settings::parse(std::path::Path::new("s"), text.as_bytes()).unwrap();
        let endpoint =
            crate::endpoint::resolve(&settings, &crate::tables::Tables::embedded(), &settings.endpoint[0]).unwrap();
        let message = ToWorker::Assignment(Box::new(Assignment {
            endpoint,
            token_file: "/t".into(),
            credential_file: "/c".into(),
            seal_key_file: "/s".into(),
            models_cache_file: "/m".into(),
            learned_file: "/l".into(),
            config_folder: "/f".into(),
        }));
        let mut buffer = BytesMut::new();
        SupervisorCodec::default().encode(message.clone(), &mut buffer).unwrap();
        assert_eq!(WorkerCodec::default().decode(&mut buffer).unwrap(), Some(message));
        assert!(buffer.is_empty());
    }

    #[test]
    fn an_oversized_length_is_refused_before_it_is_allocated() {
        let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0][..]);
        assert!(matches!(WorkerCodec::default().decode(&mut buffer), Err(FrameError::Io(_))));
        assert!(matches!(decode::<ToWorker>(&[1, 0, 0]), Err(FrameError::Trailing(1))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = decode::<FromWorker>(&bytes);
            let _ = decode::<ToWorker>(&bytes);
        }
    }
}
