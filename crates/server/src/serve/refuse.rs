//! Connections beyond the limit.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How many are told why at a time; the others are just closed.
pub(super) const REFUSALS_MAX: usize = 64;
/// How long that may take.
const AT_MOST: Duration = Duration::from_secs(1);
/// Bytes of its request that are read meanwhile.
const READ_BYTES_MAX: u64 = 64 << 10;

/// In the form that most clients can read, whichever API they speak: the path is not read.
const ANSWER: &str = "HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\n\
    retry-after: 2\r\n\
    connection: close\r\n\
    content-length: 70\r\n\
    \r\n\
    {\"error\":{\"message\":\"too many connections are open; try again later\"}}";

/// Says that there is no room. What the client sends is read for a moment: a connection that is
/// closed with bytes unread is reset, and the answer with it.
pub(super) async fn refuse(mut stream: TcpStream) {
    let refusing = async {
        stream.write_all(ANSWER.as_bytes()).await?;
        stream.shutdown().await?;
        let mut rest = stream.take(READ_BYTES_MAX);
        let mut buffer = [0; 1024];
        while rest.read(&mut buffer).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _client_is_gone_or_slow = timeout(AT_MOST, refusing).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let (head, body) = ANSWER.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{}", body.len());
    }
}
