//! Tests of what needs no server.

use super::*;

#[test]
fn waits_are_found_below_other_errors() {
    let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("7"))]);
    let wait = RetryAfter::from_headers(&headers).unwrap();
    let error = Error::new(ErrorKind::Throttled, "slow down").with_source(wait);
    assert_eq!(RetryAfter::find_in(&error), Some(RetryAfter(Duration::from_secs(7))));
    assert_eq!(error.to_string(), "slow down: the origin asks to wait 7 s");
    assert_eq!(RetryAfter::find_in(&Error::new(ErrorKind::Throttled, "slow down")), None);
}

#[tokio::test]
async fn a_refused_connection_is_unavailable_and_prints_no_url() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = ::url::Url::parse(&format!("http://{closed}/?sig=hush")).unwrap();
    let http = Http::new(&Policy::default(), &url).unwrap();
    let error = http.send(Call::new(Method::GET, url)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
}
