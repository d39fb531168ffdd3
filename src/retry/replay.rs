//! Floor 4: a request body that can be sent again, up to a limit, without being copied.

use crate::error::BoxError;
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

/// What all recorded bodies of the process may hold together when nothing is said: a thousand of 64 KiB.
pub const PROCESS_BYTES_DEFAULT: usize = 64 << 20;

static PROCESS_BYTES_MAX: AtomicUsize = AtomicUsize::new(PROCESS_BYTES_DEFAULT);
static PROCESS_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Limits what all recorded bodies of the process hold together, in bytes. Beyond it bodies stream on unharmed and are
/// not repeated.
pub fn limit_process_bytes(max: usize) {
    PROCESS_BYTES_MAX.store(max, Ordering::Relaxed);
}

/// What all recorded bodies of the process hold together, in bytes. A body that came as one piece is not counted: it
/// was whole in memory before.
pub fn process_bytes() -> usize {
    PROCESS_BYTES.load(Ordering::Relaxed)
}

/// A request body that is recorded as it is read, or that replays a recording.
#[derive(Debug)]
pub struct Replay<B>(Kind<B>);

#[derive(Debug)]
enum Kind<B> {
    /// At its end, or one piece, or one that broke before it began.
    Whole(Option<Result<Bytes, BoxError>>),
    /// Not recorded.
    Through(B),
    /// Read from a tape.
    Tape(Reader<B>),
}

/// What is kept to send a body again. Dropped, the recording ends.
#[derive(Debug)]
pub struct Keep<B>(Kept<B>);

#[derive(Debug)]
enum Kept<B> {
    Whole(Option<Bytes>),
    Tape(Arc<Mutex<Tape<B>>>),
}

/// Whether a body can be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayable {
    /// All of it is kept.
    Complete,
    /// What was read of it is kept, the rest is still to come.
    Open,
    /// It was longer than the limit, or broke.
    Gone,
}

impl<B> Replay<B> {
    /// A body that is passed on and not recorded.
    pub fn through(body: B) -> Self {
        Self(Kind::Through(body))
    }
}

impl<B> Replay<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    /// Records `body` up to `bytes_max`. Nothing is kept of a body that says it is longer.
    ///
    /// A body that ends at once, or in one piece whose length is known, costs no allocation.
    pub fn record(mut body: B, bytes_max: usize) -> (Self, Option<Keep<B>>) {
        if body.is_end_stream() {
            return (Self(Kind::Whole(None)), Some(Keep(Kept::Whole(None))));
        }
        let hint = body.size_hint();
        if usize::try_from(hint.lower()).map_or(true, |least| least > bytes_max) {
            return (Self::through(body), None);
        }
        let mut first = None;
        if hint.exact().is_some() {
            // A body of known length has usually all of it ready. Should it have not, its sender polls it again.
            match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => {}
                Poll::Ready(Some(Err(error))) => return (Self(Kind::Whole(Some(Err(error.into())))), None),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(mut data) if body.is_end_stream() => {
                        let bytes = data.copy_to_bytes(data.remaining());
                        let keep = (bytes.len() <= bytes_max).then(|| Keep(Kept::Whole(Some(bytes.clone()))));
                        return (Self(Kind::Whole(Some(Ok(bytes)))), keep);
                    }
                    Ok(data) => first = Some(Frame::data(data)),
                    Err(frame) => first = Some(frame),
                },
                Poll::Ready(None) => return (Self(Kind::Whole(None)), Some(Keep(Kept::Whole(None)))),
            }
        }
        let mut tape = Tape::new(body, bytes_max);
        if let Some(frame) = first {
            let frame = tape.put(frame);
            if !tape.recording {
                // Too long to be kept, but the first reader needs it.
                tape.chunks.extend(frame.into_data());
            }
            tape.look_for_end();
        }
        let tape = Arc::new(Mutex::new(tape));
        let reader = Reader { tape: Arc::clone(&tape), turn: 0, at: 0, trailers: false };
        (Self(Kind::Tape(reader)), Some(Keep(Kept::Tape(tape))))
    }
}

impl<B> Keep<B> {
    /// Whether it can be sent again now.
    pub fn state(&self) -> Replayable {
        match &self.0 {
            Kept::Whole(_) => Replayable::Complete,
            Kept::Tape(tape) => {
                let tape = lock(tape);
                match (tape.recording, tape.body.is_some()) {
                    (false, _) => Replayable::Gone,
                    (true, false) => Replayable::Complete,
                    (true, true) => Replayable::Open,
                }
            }
        }
    }

    /// The body once more, from its beginning. Of a body that is not complete, the reader before gets no more.
    pub fn again(&self) -> Option<Replay<B>> {
        match &self.0 {
            Kept::Whole(bytes) => Some(Replay(Kind::Whole(bytes.clone().map(Ok)))),
            Kept::Tape(shared) => {
                let mut tape = lock(shared);
                if !tape.recording {
                    return None;
                }
                tape.turn = tape.turn.wrapping_add(1);
                let reader = Reader { tape: Arc::clone(shared), turn: tape.turn, at: 0, trailers: false };
                Some(Replay(Kind::Tape(reader)))
            }
        }
    }
}

impl<B> Drop for Keep<B> {
    fn drop(&mut self) {
        if let Kept::Tape(tape) = &self.0 {
            lock(tape).recording = false;
        }
    }
}

/// What was read of a body, and the rest of it.
#[derive(Debug)]
struct Tape<B> {
    /// What is still to come; `None` at the end.
    body: Option<B>,
    chunks: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    bytes_max: usize,
    /// Whether everything read so far is to be kept for another reader.
    recording: bool,
    /// Whether it was kept so far.
    intact: bool,
    /// The reader who may go on reading `body`.
    turn: u32,
}

#[derive(Debug)]
struct Reader<B> {
    tape: Arc<Mutex<Tape<B>>>,
    turn: u32,
    at: usize,
    trailers: bool,
}

/// One reader holds the lock while it polls; a reader that panicked leaves a tape that is still consistent.
fn lock<B>(tape: &Mutex<Tape<B>>) -> MutexGuard<'_, Tape<B>> {
    tape.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B> Tape<B> {
    /// A chunk costs its place besides its bytes, so many tiny ones are as long as one big one.
    fn chunks_max(&self) -> usize {
        16 + self.bytes_max / 64
    }

    /// Notes a chunk, or stops recording when it is one too many.
    fn keep(&mut self, chunk: &Bytes) {
        if !self.recording || chunk.is_empty() {
            return;
        }
        let fits =
            self.bytes.saturating_add(chunk.len()) <= self.bytes_max && self.chunks.len() < self.chunks_max();
        if fits && claim(chunk.len()) {
            self.bytes += chunk.len();
            self.chunks.push(chunk.clone());
        } else {
            self.stop();
        }
    }

    fn stop(&mut self) {
        self.recording = false;
        self.release();
    }

    fn release(&mut self) {
        self.intact = false;
        self.chunks.clear();
        PROCESS_BYTES.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl<B> Drop for Tape<B> {
    fn drop(&mut self) {
        self.release();
    }
}

/// Takes a part of what the process may hold.
fn claim(bytes: usize) -> bool {
    let max = PROCESS_BYTES_MAX.load(Ordering::Relaxed);
    let take = |held: usize| held.checked_add(bytes).filter(|held| *held <= max);
    PROCESS_BYTES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
}

impl<B> Tape<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    fn new(body: B, bytes_max: usize) -> Self {
        Self {
            body: Some(body),
            chunks: Vec::new(),
            trailers: None,
            bytes: 0,
            bytes_max,
            recording: true,
            intact: true,
            turn: 0,
        }
    }

    /// The next frame of the body, noted.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match ready!(Pin::new(body).poll_frame(cx)) {
            None => {
                self.body = None;
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                self.stop();
                self.body = None;
                Poll::Ready(Some(Err(error.into())))
            }
            Some(Ok(frame)) => {
                let frame = self.put(frame);
                self.look_for_end();
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn put(&mut self, frame: Frame<B::Data>) -> Frame<Bytes> {
        let frame = frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
        match frame.data_ref() {
            Some(chunk) => self.keep(chunk),
            None if self.recording => self.trailers = frame.trailers_ref().cloned(),
            None => {}
        }
        frame
    }

    fn look_for_end(&mut self) {
        if self.trailers.is_some() || self.body.as_ref().is_some_and(Body::is_end_stream) {
            self.body = None;
        }
    }
}

impl<B> Reader<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut tape = lock(&self.tape);
        if tape.turn != self.turn && (tape.body.is_some() || !tape.intact) {
            return Poll::Ready(Some(Err("this attempt was given up and its body is sent elsewhere".into())));
        }
        if let Some(chunk) = tape.chunks.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if !tape.recording && tape.body.is_some() {
            tape.release();
        }
        if !self.trailers
            && let Some(trailers) = &tape.trailers
        {
            self.trailers = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
        }
        let frame = ready!(tape.poll_rest(cx));
        self.at = tape.chunks.len();
        if let Some(Ok(frame)) = &frame {
            self.trailers |= frame.is_trailers();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let tape = lock(&self.tape);
        tape.body.is_none() && self.at >= tape.chunks.len() && (self.trailers || tape.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        let tape = lock(&self.tape);
        let kept = tape.chunks.iter().skip(self.at).map(|chunk| chunk.len() as u64).sum();
        let rest = tape.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        grown(rest, kept)
    }
}

/// `hint` and so many bytes more.
fn grown(hint: SizeHint, bytes: u64) -> SizeHint {
    let mut sum = SizeHint::new();
    sum.set_lower(hint.lower().saturating_add(bytes));
    if let Some(upper) = hint.upper() {
        sum.set_upper(upper.saturating_add(bytes));
    }
    sum
}

impl<B> Body for Replay<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.get_mut().0 {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| bytes.map(Frame::data))),
            Kind::Tape(reader) => reader.poll_frame(cx),
            Kind::Through(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                let whole =
                    |frame: Frame<B::Data>| frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
                Poll::Ready(frame.map(|frame| frame.map(whole).map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Tape(reader) => reader.is_end_stream(),
            Kind::Through(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(Some(Ok(bytes))) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Whole(Some(Err(_))) => SizeHint::default(),
            Kind::Whole(None) => SizeHint::with_exact(0),
            Kind::Tape(reader) => reader.size_hint(),
            Kind::Through(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream::{self, StreamExt};
    use http_body_util::{BodyExt, Empty, Full, StreamBody};
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::io;

    #[derive(Debug, Clone)]
    enum Step {
        Data(Vec<u8>),
        Trailers,
        Fail,
        Wait,
    }

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))])
    }

    fn body(steps: Vec<Step>) -> impl Body<Data = Bytes, Error = io::Error> + Unpin {
        let mut steps = VecDeque::from(steps);
        let frames = stream::poll_fn(move |cx| {
            Poll::Ready(match steps.pop_front() {
                None => None,
                Some(Step::Data(bytes)) => Some(Ok(Frame::data(bytes.into()))),
                Some(Step::Trailers) => Some(Ok(Frame::trailers(trailers()))),
                Some(Step::Fail) => Some(Err(io::ErrorKind::BrokenPipe.into())),
                Some(Step::Wait) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            })
        });
        StreamBody::new(frames.boxed())
    }

    fn data(text: &str) -> Step {
        Step::Data(text.as_bytes().to_vec())
    }

    /// Bytes, whether trailers came, whether it failed.
    type Read = (Vec<u8>, bool, bool);

    /// Reads up to `frames` frames.
    async fn read<B>(body: &mut Replay<B>, frames: usize) -> Read
    where
        B: Body + Unpin,
        B::Error: Into<BoxError>,
    {
        let mut seen = (Vec::new(), false, false);
        for _ in 0..frames {
            match body.frame().await {
                None => break,
                Some(Err(_)) => {
                    seen.2 = true;
                    break;
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => seen.0.extend(bytes),
                    Err(_) => seen.1 = true,
                },
            }
        }
        seen
    }

    const ALL: usize = usize::MAX >> 8;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[tokio::test]
    async fn a_body_in_one_piece_is_kept_as_it_is() {
        let (mut first, keep) = Replay::record(Full::new(Bytes::from_static(b"hello")), 5);
        let keep = keep.unwrap();
        assert_eq!((first.size_hint().exact(), keep.state()), (Some(5), Replayable::Complete));
        assert_eq!(read(&mut first, ALL).await.0, b"hello");
        let again = keep.again().unwrap().collect().await.unwrap().to_bytes();
        assert_eq!(again.as_ptr(), b"hello".as_ptr(), "no copy");
        let (mut empty, keep) = Replay::record(Empty::<Bytes>::new(), 5);
        assert!(empty.is_end_stream() && empty.size_hint().exact() == Some(0));
        assert_eq!(
            (read(&mut empty, ALL).await, keep.unwrap().state()),
            (Default::default(), Replayable::Complete)
        );
        let (mut long, keep) = Replay::record(Full::new(Bytes::from_static(b"hello!")), 5);
        assert_eq!((read(&mut long, ALL).await.0, keep.is_none()), (b"hello!".to_vec(), true));
    }

    #[tokio::test]
    async fn a_stream_is_kept_up_to_its_limit() {
        let (mut first, keep) = Replay::record(body(vec![data("abcdefgh")]), 8);
        let keep = keep.unwrap();
        assert_eq!(keep.state(), Replayable::Open);
        assert_eq!(
            (read(&mut first, ALL).await.0, keep.state()),
            (b"abcdefgh".to_vec(), Replayable::Complete)
        );
        // The limit counts over all readers.
        let (mut first, keep) = Replay::record(body(vec![data("abcdefgh"), data("i")]), 8);
        let keep = keep.unwrap();
        read(&mut first, 1).await;
        let mut second = keep.again().unwrap();
        assert_eq!((read(&mut second, ALL).await.0, keep.state()), (b"abcdefghi".to_vec(), Replayable::Gone));
        assert!(keep.again().is_none());
    }

    #[tokio::test]
    async fn trailers_are_replayed_each_time() {
        let (mut first, keep) = Replay::record(body(vec![data("ab"), Step::Wait, Step::Trailers]), 8);
        let (keep, expected) = (keep.unwrap(), (b"ab".to_vec(), true, false));
        assert_eq!(read(&mut first, ALL).await, expected);
        for _ in 0..3 {
            let mut again = keep.again().unwrap();
            assert!(!again.is_end_stream());
            assert_eq!((read(&mut again, ALL).await, again.is_end_stream()), (expected.clone(), true));
        }
    }

    #[tokio::test]
    async fn a_given_up_reader_gets_no_more_and_the_next_gets_all() {
        let (mut first, keep) = Replay::record(body(vec![data("ab"), data("cd"), Step::Trailers]), 8);
        read(&mut first, 1).await;
        let mut second = keep.as_ref().unwrap().again().unwrap();
        assert!(read(&mut first, 1).await.2);
        assert_eq!(read(&mut second, ALL).await, (b"abcd".to_vec(), true, false));
        // Complete, it can be read by several at once, though nobody else is to come.
        let (mut third, mut fourth) =
            (keep.as_ref().unwrap().again().unwrap(), keep.unwrap().again().unwrap());
        assert_eq!(
            (read(&mut third, 1).await.0, read(&mut fourth, ALL).await.0),
            (b"ab".to_vec(), b"abcd".to_vec())
        );
        assert_eq!(read(&mut third, ALL).await.0, b"cd");
    }

    #[tokio::test]
    async fn a_given_up_reader_never_takes_a_part_for_the_whole() {
        let (mut first, keep) = Replay::record(body(vec![data("abcdefgh"), data("i")]), 8);
        let mut second = keep.unwrap().again().unwrap();
        assert_eq!(read(&mut second, ALL).await.0, b"abcdefghi");
        assert!(read(&mut first, ALL).await.2);
    }

    #[tokio::test]
    async fn a_length_that_lies_is_found_out() {
        struct Liar<B>(B);
        impl<B: Body + Unpin> Body for Liar<B> {
            type Data = B::Data;
            type Error = B::Error;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
                Pin::new(&mut self.0).poll_frame(cx)
            }
            fn size_hint(&self) -> SizeHint {
                SizeHint::with_exact(2)
            }
        }
        let steps = || vec![data("0123456789"), data("0123456789")];
        for max in [2, 10, 15] {
            let (mut first, keep) = Replay::record(Liar(body(steps())), max);
            assert_eq!(read(&mut first, ALL).await, (b"01234567890123456789".to_vec(), false, false));
            assert_eq!(keep.map(|keep| keep.state()).unwrap_or(Replayable::Gone), Replayable::Gone, "{max}");
        }
        let (mut first, keep) = Replay::record(Liar(body(vec![Step::Fail])), 8);
        assert!(keep.is_none() && read(&mut first, ALL).await.2);
    }

    #[tokio::test]
    async fn many_tiny_chunks_count_as_a_long_body() {
        let steps = (0..1000).map(|_| data("x")).collect();
        let (mut first, keep) = Replay::record(body(steps), 4096);
        assert_eq!(read(&mut first, ALL).await.0.len(), 1000);
        assert_eq!(keep.unwrap().state(), Replayable::Gone);
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => proptest::collection::vec(any::<u8>(), 0..6).prop_map(Step::Data),
            1 => Just(Step::Wait),
        ];
        let end =
            prop_oneof![4 => Just(vec![]), 2 => Just(vec![Step::Trailers]), 1 => Just(vec![Step::Fail])];
        (proptest::collection::vec(step, 0..12), end).prop_map(|(mut steps, end)| {
            steps.extend(end);
            steps
        })
    }

    proptest! {
        /// The slow model: what a body that is not recorded would give.
        #[test]
        fn every_reader_sees_what_a_body_that_is_not_recorded_gives(
            steps in steps(), max in 0usize..40, reads in proptest::collection::vec(0usize..14, 0..4),
        ) {
            block_on(async {
                let expected = read(&mut Replay::through(body(steps.clone())), ALL).await;
                let (mut reader, keep) = Replay::record(body(steps), max);
                let keep = keep.unwrap();
                let mut held = Vec::new();
                for frames in reads {
                    let part = read(&mut reader, frames).await;
                    prop_assert!(expected.0.starts_with(&part.0) || part.2 && !expected.2);
                    let Some(next) = keep.again() else {
                        prop_assert!(expected.0.len() > max || expected.2);
                        break;
                    };
                    held.push(std::mem::replace(&mut reader, next));
                }
                if keep.state() == Replayable::Gone {
                    return Ok(());
                }
                let mut last = keep.again().unwrap();
                prop_assert_eq!(read(&mut last, ALL).await, expected.clone());
                let fits = expected.0.len() <= max && !expected.2;
                prop_assert_eq!(keep.state() == Replayable::Complete, fits);
                Ok(())
            })?;
        }

        #[test]
        fn a_dropped_recording_harms_no_reader(steps in steps(), max in 0usize..40, frames in 0usize..14) {
            block_on(async {
                let expected = read(&mut Replay::through(body(steps.clone())), ALL).await;
                let (mut reader, keep) = Replay::record(body(steps), max);
                let mut seen = read(&mut reader, frames).await;
                drop(keep);
                let rest = read(&mut reader, ALL).await;
                seen = ([seen.0, rest.0].concat(), seen.1 || rest.1, seen.2 || rest.2);
                prop_assert_eq!(seen, expected);
                Ok(())
            })?;
        }
    }
}
