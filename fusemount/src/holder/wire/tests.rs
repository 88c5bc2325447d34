//! Messages as they travel, and bytes that are none.

use proptest::prelude::*;

use super::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..300)
}

fn message() -> impl Strategy<Value = Message> {
    let entries = proptest::collection::vec(any::<(u64, u32)>(), 0..20);
    prop_oneof![
        any::<bool>().prop_map(|take_over| Message::Attach { take_over }),
        bytes().prop_map(|answer| Message::Ready { answer }),
        any::<u64>().prop_map(|node| Message::Register { node }),
        any::<u32>().prop_map(|backing| Message::Release { backing }),
        any::<u64>().prop_map(|from| Message::Inherited { from }),
        any::<bool>().prop_map(|lazily| Message::Unmount { lazily }),
        Just(Message::Ping),
        (any::<u32>(), ".{0,40}").prop_map(|(errno, why)| Message::Refused { errno, why }),
        (any::<[u8; 16]>(), any::<bool>(), bytes(), bytes()).prop_map(
            |(mount, later, target, init)| Message::Attached { mount, later, target, init }
        ),
        (any::<bool>(), ".{0,40}").prop_map(|(same, note)| Message::Begin { same, note }),
        any::<u32>().prop_map(|backing| Message::Registered { backing }),
        entries.prop_map(|entries| Message::Page { entries }),
        Just(Message::Done),
        (any::<u32>(), bytes()).prop_map(|(worker, target)| Message::Pong { worker, target }),
        Just(Message::Leave),
    ]
}

proptest! {
    #[test]
    fn a_message_arrives_as_it_was_sent(number in any::<u32>(), message in message()) {
        let packet = message.encode(number);
        prop_assert!(packet.len() <= MAX_MESSAGE_BYTES);
        prop_assert_eq!(Message::decode(&packet), Some((number, Some(message))));
    }

    #[test]
    fn a_cut_or_extended_message_is_none(message in message(), at in any::<prop::sample::Index>()) {
        let packet = message.encode(7);
        let cut = &packet[..at.index(packet.len())];
        // A list without its end is a shorter list, if the cut is between two entries.
        let shorter = matches!(message, Message::Page { .. }) && cut.len() >= 9 && (cut.len() - 9) % 12 == 0;
        prop_assert!(shorter || !matches!(Message::decode(cut), Some((_, Some(_)))));
        let mut longer = packet;
        longer.push(0);
        prop_assert!(!matches!(Message::decode(&longer), Some((_, Some(_)))));
    }

    #[test]
    fn any_bytes_are_a_message_or_nothing(packet in bytes(), magic in any::<bool>()) {
        let mut packet = packet;
        if magic && packet.len() >= 4 {
            packet[..4].copy_from_slice(&MAGIC);
        }
        if let Some((number, Some(message))) = Message::decode(&packet) {
            prop_assert_eq!(message.encode(number), packet);
        }
    }
}

#[test]
fn the_longest_messages_fit() {
    let entries = vec![(u64::MAX, u32::MAX); PAGE_ENTRIES + 5];
    let packet = Message::Page { entries }.encode(1);
    assert!(packet.len() <= MAX_MESSAGE_BYTES);
    let Some((1, Some(Message::Page { entries }))) = Message::decode(&packet) else { panic!() };
    assert_eq!(entries.len(), PAGE_ENTRIES);
    let attached = Message::Attached {
        mount: [0; 16],
        later: true,
        target: vec![b'x'; 4096],
        init: vec![1; 4096],
    };
    let packet = attached.encode(2);
    assert!(packet.len() <= MAX_MESSAGE_BYTES);
    assert_eq!(Message::decode(&packet), Some((2, Some(attached))));
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
    let many = vec![file.as_fd(); MAX_DESCRIPTORS];
    send(ours.as_fd(), &Message::Ping.encode(1), &many).unwrap();
    let (packet, beside) = receive(&theirs, RecvFlags::empty()).unwrap();
    assert_eq!(Message::decode(&packet), Some((1, Some(Message::Ping))));
    assert_eq!(beside.len(), MAX_DESCRIPTORS);
    for descriptor in &beside {
        assert!(
            rustix::io::fcntl_getfd(descriptor).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
        );
    }
    let more = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
    assert!(send(ours.as_fd(), &Message::Ping.encode(1), &more).is_err());
    drop(ours);
    assert!(receive(&theirs, RecvFlags::empty()).unwrap().0.is_empty());
}
