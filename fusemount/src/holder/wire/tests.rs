//! Messages as they travel, and bytes that are none.

use proptest::prelude::*;

use super::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..300)
}

fn message() -> impl Strategy<Value = Message> {
    let kind = proptest::sample::select(Kind::ALL.to_vec());
    (kind, any::<(bool, u32, u64)>(), bytes())
        .prop_map(|(kind, (flag, small, large), body)| Message { kind, flag, small, large, body })
}

proptest! {
    #[test]
    fn a_message_arrives_as_it_was_sent(number in any::<u32>(), message in message()) {
        let packet = message.encode(number);
        prop_assert_eq!(Message::decode(&packet), Some((number, message)));
    }

    #[test]
    fn what_is_cut_before_its_body_is_none(message in message(), length in 0..HEADER_BYTES) {
        prop_assert_eq!(Message::decode(&message.encode(7)[..length]), None);
    }

    #[test]
    fn any_bytes_are_a_message_or_nothing(packet in bytes(), magic in any::<bool>()) {
        let mut packet = packet;
        if magic && packet.len() >= 8 {
            packet[..4].copy_from_slice(&MAGIC);
            packet[5..8].copy_from_slice(&[1, 0, 0]);
        }
        if let Some((number, message)) = Message::decode(&packet) {
            // Whatever it is, its registrations can be listed.
            prop_assert!(message.entries().count() <= packet.len());
            prop_assert_eq!(message.encode(number), packet);
        }
    }

    #[test]
    fn registrations_arrive_as_they_were_sent(
        entries in proptest::collection::vec(any::<(u64, u32)>(), 0..50),
    ) {
        let page = Message::page(entries.iter().copied());
        prop_assert_eq!(page.entries().collect::<Vec<_>>(), entries);
    }
}

#[test]
fn the_longest_messages_fit() {
    let page = Message::page((0..2 * PAGE_ENTRIES as u64).map(|node| (node, 1)));
    assert_eq!(page.entries().count(), PAGE_ENTRIES);
    assert!(page.encode(1).len() <= MAX_MESSAGE_BYTES);
    let long = Message::with(Kind::Refused, &vec![b'x'; 2 * MAX_MESSAGE_BYTES]);
    assert_eq!(long.encode(1).len(), MAX_MESSAGE_BYTES);
}

#[test]
fn descriptors_travel_beside_a_message_and_too_many_are_refused() {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let ping = Message::of(Kind::Ping);
    let many = vec![file.as_fd(); MAX_DESCRIPTORS];
    send(ours.as_fd(), &ping.encode(1), &many).unwrap();
    let (packet, beside) = receive(&theirs, RecvFlags::empty()).unwrap();
    assert_eq!(Message::decode(&packet), Some((1, ping.clone())));
    assert_eq!(beside.len(), MAX_DESCRIPTORS);
    for descriptor in &beside {
        let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    let more = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
    assert!(send(ours.as_fd(), &ping.encode(1), &more).is_err());
    drop(ours);
    assert!(receive(&theirs, RecvFlags::empty()).unwrap().0.is_empty());
}

/// A holder that is stopped, or hangs, with as many connections waiting as it lets.
#[test]
fn connecting_to_a_full_queue_ends() {
    use rustix::net::{bind, listen};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let kind = SocketType::SEQPACKET;
    let listener = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&listener, 1).unwrap();
    let (told, heard) = std::sync::mpsc::channel();
    // The thread is left behind where connecting does not end.
    std::thread::spawn(move || {
        let within = Duration::from_millis(100);
        let mut waiting = Vec::new();
        let refused = loop {
            match connect_to(&path, within) {
                Ok(socket) => waiting.push(socket),
                Err(error) => break error,
            }
        };
        told.send((waiting.len(), refused.kind())).unwrap();
    });
    let (waiting, refused) = heard.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!((1..=2).contains(&waiting), "{waiting}");
    assert_eq!(refused, io::ErrorKind::WouldBlock);
    drop(listener);
}
