// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! What is explored. Connections are A, B and C; writes of one connection come in
//! the order given, and may all be on their way at once.

use std::time::Instant;

use crate::search::{Outcome, explore};
use crate::system::{Ask, Command, END, Id, May, System, Without, Write};

const A: u8 = 0;
const B: u8 = 1;
const C: u8 = 2;

/// How many GETs: `full` of them where there is time.
fn few(normal: usize, full: usize) -> usize {
    if std::env::var("BMC_MODEL").is_ok_and(|model| model == "full") { full } else { normal }
}

/// GETs of key 0.
fn gets(count: usize) -> Vec<Ask> {
    gets_of(&vec![0; count])
}

fn gets_of(keys: &[u8]) -> Vec<Ask> {
    keys.iter().map(|&key| Ask { key, id: Id::Own, many: false }).collect()
}

/// A GET whose name is `id`, in this cell of `bmc_senders`, with this lease.
fn named(key: u8, id: u8, cell: u8, lease: u8) -> Ask {
    Ask { key, id: Id::Is { id, cell, lease }, many: false }
}

/// GETs of key 0 with one request id.
fn equal(count: usize) -> Vec<Ask> {
    vec![named(0, 0, 0, 0); count]
}

fn set(connection: u8, key: u8) -> Write {
    Write { connection, key, command: Command::Set, noreply: false, end: 0 }
}

fn noreply(connection: u8, key: u8) -> Write {
    Write { noreply: true, ..set(connection, key) }
}

fn delete(connection: u8, key: u8) -> Write {
    Write { command: Command::Delete, ..set(connection, key) }
}

fn flush_all(connection: u8) -> Write {
    Write { command: Command::FlushAll, ..set(connection, 0) }
}

/// A set that is not understood; its connection is mute from then on.
fn unparsed(connection: u8) -> Write {
    Write { command: Command::Unparsed, ..set(connection, 0) }
}

/// A set of key 0 with an expiry; the initial item ends at 3.
fn until(connection: u8, end: u8) -> Write {
    Write { end, ..set(connection, 0) }
}

/// Stores if there is nothing, with this end.
fn add_until(connection: u8, end: u8) -> Write {
    Write { command: Command::Add, ..until(connection, end) }
}

/// Likewise, and does not say whether it did.
fn vivify_until(connection: u8, end: u8) -> Write {
    Write { command: Command::Vivify, ..until(connection, end) }
}

fn unparsed_until(connection: u8, end: u8) -> Write {
    Write { end, ..unparsed(connection) }
}

fn noreply_until(connection: u8, end: u8) -> Write {
    Write { noreply: true, ..until(connection, end) }
}

fn system(asks: Vec<Ask>, writes: &[Write], may: &[May], without: &[Without]) -> System {
    let (writes, may, without) = (writes.to_vec(), may.to_vec(), without.to_vec());
    System { asks, writes, may, without, only_stale: false }
}

#[track_caller]
fn run(system: &System) -> Outcome {
    let start = Instant::now();
    let outcome = explore(system);
    println!(
        "{system}: {} states, {} hits, {} fills, {:.1} s",
        outcome.states,
        outcome.hits,
        outcome.fills,
        start.elapsed().as_secs_f32()
    );
    if let Some(violation) = &outcome.violation {
        println!("{violation}");
    }
    outcome
}

#[track_caller]
fn explore_holds(system: &System) {
    let outcome = run(system);
    assert!(outcome.violation.is_none(), "{system}: see the steps above");
    assert!(outcome.fills > 0, "{system}: nothing was ever filled");
    assert!(outcome.hits > 0, "{system}: nothing was ever hit");
}

/// The protocol as it is has every property.
#[track_caller]
fn holds(asks: Vec<Ask>, writes: &[Write], may: &[May]) {
    explore_holds(&system(asks, writes, may, &[]));
}

/// The same with so few GETs that what one fills no other one may hit.
#[track_caller]
fn fills_well(count: usize, writes: &[Write], may: &[May]) {
    let system = system(gets(count), writes, may, &[]);
    let outcome = run(&system);
    assert!(outcome.violation.is_none(), "{system}: see the steps above");
    assert!(outcome.fills > 0, "{system}: nothing was ever filled");
}

/// What was taken out was needed: this property is lost.
#[track_caller]
fn fails(property: &str, asks: Vec<Ask>, writes: &[Write], may: &[May], without: &[Without]) {
    let system = system(asks, writes, may, without);
    let violation = run(&system).violation;
    let found = violation.expect("something is violated").property;
    assert!(found.starts_with(property), "{system}: {found} instead of {property}");
}

/// Whatever else may be wrong: no GET returns what an acknowledged write had
/// replaced before the GET began.
#[track_caller]
fn is_fresh_after_ack(asks: Vec<Ask>, writes: &[Write], may: &[May], without: &[Without]) {
    let system = system(asks, writes, may, without);
    explore_holds(&System { only_stale: true, ..system });
}

// The protocol as it is.

#[test]
fn a_set_is_coherent() {
    holds(gets(3), &[set(A, 0)], &[]);
    holds(gets(4), &[set(A, 0)], &[May::Cached]);
}

#[test]
fn a_delete_is_coherent() {
    holds(gets(4), &[delete(A, 0)], &[]);
}

#[test]
fn pipelined_writes_are_coherent() {
    holds(gets(few(3, 4)), &[set(A, 0), delete(A, 0)], &[]);
}

#[test]
fn writes_of_two_connections_are_coherent() {
    holds(gets(few(3, 4)), &[set(A, 0), set(B, 0)], &[]);
}

#[test]
fn two_sets_and_another_ones_delete_are_coherent() {
    holds(gets(few(2, 3)), &[set(A, 0), set(A, 0), delete(B, 0)], &[]);
}

#[test]
fn a_set_a_delete_and_another_ones_set_are_coherent() {
    holds(gets(few(2, 3)), &[set(A, 0), delete(A, 0), set(B, 0)], &[]);
}

#[test]
fn two_keys_of_one_bucket_are_coherent() {
    holds(gets_of(&[0, 0, 1]), &[set(A, 0), set(B, 1)], &[]);
    holds(gets_of(&[0, 1, 1]), &[set(A, 0)], &[May::Cached]);
    if few(0, 1) > 0 {
        holds(gets_of(&[0, 0, 1]), &[set(A, 0), set(A, 1), delete(B, 0)], &[]);
    }
}

#[test]
fn a_slot_may_be_taken_by_another_bucket() {
    holds(gets(few(3, 4)), &[set(A, 0)], &[May::Cached, May::StealSlot]);
}

#[test]
fn segments_may_be_dropped_and_sent_again() {
    holds(gets(few(2, 3)), &[set(A, 0), set(A, 0)], &[May::DropSegments]);
    holds(gets_of(&[0, 0, 1]), &[set(A, 0), set(A, 1)], &[May::DropSegments]);
}

#[test]
fn a_noreply_write_is_retired_by_a_later_reply() {
    holds(gets(3), &[noreply(A, 0), set(A, 0)], &[May::DropSegments]);
    holds(gets(few(2, 3)), &[noreply(A, 0), noreply(A, 0), set(A, 0)], &[May::DropSegments]);
}

#[test]
fn noreply_writes_and_another_ones_set_are_coherent() {
    holds(gets(few(2, 3)), &[noreply(A, 0), set(B, 0)], &[May::DropSegments]);
    let writes = [noreply(A, 0), noreply(A, 0), set(A, 0), set(B, 0)];
    if few(0, 1) > 0 {
        holds(gets(2), &writes, &[May::DropSegments]);
    } else {
        holds(gets(2), &writes[1..], &[]);
    }
}

#[test]
fn a_mute_connection_is_coherent() {
    let may = [May::Mute(A), May::DropSegments];
    holds(gets(3), &[noreply(A, 0)], &may);
    holds(gets(few(2, 3)), &[noreply(A, 0), set(A, 0)], &may);
}

#[test]
fn a_mute_and_a_followed_connection_are_coherent() {
    holds(gets(few(2, 3)), &[set(A, 0), set(B, 0)], &[May::Mute(A)]);
    holds(gets(2), &[noreply(A, 0), set(B, 0)], &[May::Mute(A), May::DropSegments]);
}

#[test]
fn two_mute_connections_are_coherent() {
    holds(gets(few(2, 3)), &[set(A, 0), set(B, 0)], &[May::Mute(A), May::Mute(B)]);
}

#[test]
fn a_connection_may_be_lost() {
    holds(gets(few(2, 3)), &[noreply(A, 0), set(A, 0)], &[May::LoseConnection]);
    holds(gets(2), &[set(A, 0), set(B, 0)], &[May::LoseConnection]);
    if few(0, 1) > 0 {
        holds(gets(2), &[noreply(A, 0), set(A, 0)], &[May::LoseConnection, May::DropSegments]);
    }
}

#[test]
fn what_is_not_understood_is_coherent() {
    holds(gets(3), &[unparsed(A)], &[May::Cached]);
    holds(gets(2), &[unparsed(A), set(B, 0)], &[]);
    if few(0, 1) > 0 {
        holds(gets(2), &[set(A, 0), unparsed(A), set(B, 0)], &[]);
    }
}

#[test]
fn flush_all_is_coherent() {
    holds(gets(few(3, 4)), &[flush_all(A)], &[]);
    holds(gets_of(&[0, 0, 1]), &[flush_all(A)], &[]);
    holds(gets(2), &[flush_all(A), set(B, 0)], &[]);
    holds(gets(2), &[set(A, 0), flush_all(A)], &[May::Cached]);
}

#[test]
fn replies_of_writes_may_be_lost() {
    holds(gets(few(2, 3)), &[set(A, 0), set(B, 0)], &[May::LoseReplies]);
    if few(0, 1) > 0 {
        holds(gets(2), &[set(A, 0), set(B, 0)], &[May::LoseReplies, May::LoseConnection]);
    }
}

#[test]
fn equal_request_ids_are_told_apart() {
    holds(equal(3), &[set(A, 0)], &[May::LoseGets]);
    holds(equal(few(3, 4)), &[set(A, 0)], &[May::LoseGets, May::Cached]);
    holds(equal(few(2, 3)), &[set(A, 0), set(A, 0)], &[May::LoseGets]);
    holds(equal(3), &[set(A, 0), noreply(B, 0)], &[]);
}

#[test]
fn equal_request_ids_for_two_keys_are_told_apart() {
    let gets = vec![named(0, 0, 0, 0), named(0, 0, 0, 0), named(1, 0, 0, 0)];
    holds(gets, &[set(A, 0)], &[May::LoseGets]);
}

#[test]
fn request_ids_may_share_a_cell_and_a_lease() {
    let mut gets = vec![named(0, 0, 0, 0), named(0, 1, 0, 0), named(0, 2, 1, 0)];
    holds(gets.clone(), &[set(A, 0)], &[]);
    if few(0, 1) > 0 {
        gets.push(named(0, 3, 1, 1));
        holds(gets.clone(), &[set(A, 0)], &[]);
        holds(gets, &[set(A, 0), set(B, 0)], &[]);
    }
}

#[test]
fn a_request_with_two_replies_fills_nothing_wrong() {
    let mut gets = equal(3);
    gets[0].many = true;
    holds(gets, &[set(A, 0)], &[May::LoseGets]);
}

#[test]
fn an_entry_ends_with_its_item() {
    holds(gets(few(2, 3)), &[until(A, 4)], &[]);
    holds(gets(2), &[until(A, 4), until(B, 1)], &[]);
    for may in [&[][..], &[May::Mute(A)], &[May::Mute(A), May::Mute(B)]] {
        for (first, second) in [(1, 4), (4, 1), (1, 2), (2, 1)] {
            for get in 1..=few(1, 2) {
                fills_well(get, &[until(A, first), until(B, second)], may);
            }
        }
    }
}

#[test]
fn an_entry_ends_with_the_item_of_pipelined_writes() {
    for writes in [
        [noreply_until(A, 1), until(A, 4), until(B, 2)],
        [until(A, 4), until(A, 1), until(B, 2)],
        [until(A, 1), until(B, 4), until(A, 4)],
    ]
    .into_iter()
    .take(few(1, 3))
    {
        fills_well(1, &writes, &[]);
    }
}

#[test]
fn an_entry_ends_with_its_item_though_replies_and_connections_are_lost() {
    holds(gets(2), &[until(A, 1), until(A, 4)], &[May::LoseReplies]);
    let losses = [May::LoseReplies, May::LoseConnection];
    let writes = [until(A, 1), until(B, 4)];
    for may in [&losses[..1], &losses[1..], &losses[..few(1, 2)]] {
        fills_well(1, &writes, may);
    }
}

#[test]
fn an_end_that_has_passed_is_not_the_item_s() {
    let pass = [May::Pass];
    fills_well(2, &[until(A, 1)], &pass);
    fills_well(2, &[add_until(A, 1)], &pass);
    fills_well(2, &[vivify_until(A, 1)], &pass);
    fills_well(1, &[until(A, 4), add_until(B, 1)], &pass);
    fills_well(1, &[until(A, 1), until(A, 4)], &pass);
    fills_well(1, &[until(A, 1), vivify_until(B, 4)], &pass);
    fills_well(1, &[noreply_until(A, 1), add_until(A, 4)], &pass);
    fills_well(1, &[until(A, 1), until(B, 4)], &[May::Pass, May::Mute(A)]);
    fills_well(1, &[until(A, 4), add_until(B, 1)], &[May::Pass, May::Mute(A), May::Mute(B)]);
    fills_well(1, &[until(A, 1)], &[May::Pass, May::LoseReplies]);
    fills_well(1, &[add_until(A, 1)], &[May::Pass, May::LoseReplies, May::LoseConnection]);
    if few(0, 1) > 0 {
        fills_well(1, &[until(A, 1), add_until(B, 4)], &[May::Pass, May::LoseReplies]);
        fills_well(1, &[until(A, 1), until(B, 4)], &[May::Pass, May::LoseConnection]);
        fills_well(1, &[until(A, 1), until(B, 4), add_until(B, 2)], &pass);
    }
}

#[test]
fn more_ends_than_cells_are_all_heeded() {
    let mute = [May::Mute(A), May::Mute(B)];
    fills_well(1, &[until(A, 4), until(A, 2), until(A, 1)], &mute);
    fills_well(1, &[until(A, 4), until(A, 2), add_until(A, 1)], &[May::Pass, May::Mute(A)]);
}

#[test]
fn who_loses_a_cell_has_an_unknown_end_at_most() {
    let taken = [May::LoseCell];
    fills_well(1, &[add_until(A, 1)], &taken);
    fills_well(1, &[until(A, 1), until(B, 4)], &taken);
    fills_well(1, &[until(A, 1), until(B, 4)], &[May::LoseCell, May::Mute(A)]);
    fills_well(1, &[until(A, 1), add_until(A, 4)], &[May::LoseCell, May::Mute(A)]);
}

#[test]
fn an_end_that_nobody_saw_is_unknown() {
    fills_well(1, &[unparsed_until(A, 1)], &[]);
    fills_well(1, &[unparsed_until(A, 1), until(B, 4)], &[]);
}

#[test]
fn an_end_holds_though_an_acknowledgement_comes_after_bmc_lost_s() {
    fills_well(1, &[until(A, 4), until(B, 2)], &[May::DelayReplies]);
    if few(0, 1) > 0 {
        fills_well(1, &[until(A, 4), until(B, 2), add_until(B, 4)], &[May::DelayReplies]);
    }
}

#[test]
fn a_sleep_is_coherent() {
    holds(gets(3), &[set(A, 0)], &[May::Sleep, May::Cached]);
    holds(gets(3), &[set(A, 0)], &[May::Sleep, May::Mute(A)]);
    holds(equal(few(2, 3)), &[set(A, 0)], &[May::Sleep, May::LoseGets]);
    holds(gets(2), &[unparsed(A)], &[May::Sleep]);
    if few(0, 1) > 0 {
        holds(gets(2), &[noreply(A, 0), set(A, 0)], &[May::Sleep]);
        holds(gets(2), &[set(A, 0), set(A, 0)], &[May::Sleep]);
        holds(gets(2), &[set(A, 0), set(B, 0)], &[May::Sleep]);
    }
    fills_well(1, &[noreply(A, 0), set(A, 0)], &[May::Sleep]);
    fills_well(1, &[set(A, 0), set(A, 0)], &[May::Sleep]);
    fills_well(1, &[set(A, 0), set(B, 0)], &[May::Sleep]);
    fills_well(1, &[until(A, 1), until(B, 4)], &[May::Sleep]);
    fills_well(1, &[until(A, 4), until(A, 1)], &[May::Sleep]);
}

// What the protocol cannot do.

#[test]
fn an_acknowledgement_after_bmc_lost_s_leaves_it_fresh_after_ack() {
    let (writes, may) = ([set(A, 0), set(B, 0)], [May::DelayReplies]);
    is_fresh_after_ack(gets(few(2, 3)), &writes, &may, &[]);
    if few(0, 1) > 0 {
        fails("NONLIN", gets(3), &writes, &may, &[]);
    }
}

#[test]
fn a_memcached_that_stalls_for_bmc_lost_s_leaves_it_fresh_after_ack() {
    is_fresh_after_ack(gets(3), &[set(A, 0)], &[May::StallMemcached], &[]);
    fails("NONLIN", gets(3), &[set(A, 0)], &[May::StallMemcached], &[]);
}

// Simpler protocols, which are broken.

#[test]
fn to_invalidate_when_a_write_arrives_is_not_enough() {
    let without = [Without::Lease, Without::Count, Without::WriteEnd];
    fails("STALE-FOREVER", gets(3), &[set(A, 0)], &[], &without);
}

#[test]
fn leases_without_a_second_bump_are_not_enough() {
    fails("STALE-FOREVER", gets(3), &[set(A, 0)], &[], &[Without::Count, Without::WriteEnd]);
}

#[test]
fn a_flag_for_each_entry_is_not_enough() {
    fails("STALE-FOREVER", gets(3), &[set(A, 0)], &[], &[Without::Count, Without::FlagForLease]);
}

#[test]
fn to_remember_one_write_of_a_connection_is_not_enough() {
    let writes = [set(A, 0), set(A, 0)];
    fails("STALE-FOREVER", gets(3), &writes, &[], &[Without::Count, Without::Ring]);
}

#[test]
fn to_invalidate_when_a_reply_leaves_is_not_enough() {
    fails("NONLIN", gets(3), &[set(A, 0)], &[], &[Without::Count, Without::WriteBegin]);
}

// Each part of the protocol is needed.

#[test]
fn write_end_is_needed() {
    fails("PEND-LEAK", gets(2), &[set(A, 0)], &[], &[Without::WriteEnd]);
}

#[test]
fn the_end_of_a_write_given_up_for_lost_is_needed() {
    let may = [May::StallMemcached];
    fails("STALE-FOREVER", gets(3), &[set(A, 0)], &may, &[Without::EndOfReaped]);
}

#[test]
fn the_count_of_pending_writes_is_needed() {
    fails("NONLIN", gets(3), &[set(A, 0)], &[], &[Without::Count]);
    is_fresh_after_ack(gets(few(2, 3)), &[set(A, 0), set(B, 0)], &[], &[Without::Count]);
}

#[test]
fn the_count_of_requests_is_needed() {
    fails("STALE-FOREVER", equal(3), &[set(A, 0)], &[], &[Without::Senders]);
}

#[test]
fn the_name_in_the_lease_is_needed() {
    let gets = vec![named(0, 0, 0, 0), named(0, 1, 1, 0)];
    fails("STALE-FOREVER", gets, &[set(A, 0)], &[], &[Without::LeaseRequest]);
}

#[test]
fn a_lease_must_be_taken_back_before_its_request_counts_as_answered() {
    fails("STALE-FOREVER", equal(2), &[set(A, 0)], &[], &[Without::LeaseBeforeAnswer]);
}

#[test]
fn a_writer_must_store_the_quarantine_before_the_word() {
    let without = [Without::WriterOrder];
    fails("STALE-FOREVER", gets(3), &[set(A, 0)], &[May::Mute(A)], &without);
    fails("STALE-FOREVER", gets(2), &[unparsed(A)], &[], &without);
}

#[test]
fn a_reader_must_load_the_word_before_the_quarantine() {
    fails("STALE-FOREVER", gets(3), &[set(A, 0)], &[May::Mute(A)], &[Without::ReaderOrder]);
}

#[test]
fn quarantines_are_needed() {
    let lost = [May::LoseConnection];
    fails("STALE-FOREVER", gets(3), &[set(A, 0)], &lost, &[Without::QuarantineOfLost]);
    let dropped = [May::Mute(A), May::DropSegments];
    fails("STALE-FOREVER", gets(3), &[noreply(A, 0)], &dropped, &[Without::QuarantineOfRepeat]);
    fails("NONLIN", gets(3), &[flush_all(A)], &[], &[Without::QuarantineOfFlush]);
}

#[test]
fn a_sleep_must_move_the_word_and_its_end_be_quarantined() {
    let cached = [May::Sleep, May::Cached];
    fails("STALE-FOREVER", gets(3), &[set(A, 0)], &cached, &[Without::GenOfWake]);
    fails("STALE-FOREVER", gets(3), &[set(A, 0)], &[May::Sleep], &[Without::QuarantineOfWake]);
}

#[test]
fn a_locked_word_must_give_no_lease() {
    fails("STUCK-ODD", gets(3), &[set(A, 0)], &[], &[Without::LockedNoLease]);
}

#[test]
fn a_failed_fill_must_clear_the_way_before_it_unlocks() {
    fails("NONLIN", gets(3), &[set(A, 0)], &[], &[Without::ClearBeforeUnlock]);
}

#[test]
fn an_entry_must_have_the_epoch_of_its_lease() {
    fails("STALE-FOREVER", gets(3), &[unparsed(A)], &[], &[Without::EpochOfLease]);
    fails("STALE-FOREVER", gets(3), &[flush_all(A)], &[], &[Without::EpochOfLease]);
}

#[test]
fn bucket_forget_is_needed() {
    fails("STALE-FOREVER", gets(3), &[set(A, 0)], &[], &[Without::Forget]);
}

#[test]
fn the_number_of_a_slot_is_needed() {
    let may = [May::Cached, May::StealSlot];
    fails("TORN", gets(3), &[set(A, 0)], &may, &[Without::SeqCheck]);
}

#[test]
fn every_end_must_be_a_candidate_until_another_write_says_otherwise() {
    let (sooner, later) = (until(A, 1), until(B, 4));
    let (pass, mute) = ([May::Pass], [May::Mute(A)]);
    fails("OUTLIVES", gets(1), &[add_until(A, 1)], &pass, &[Without::Candidates]);
    fails("OUTLIVES", gets(1), &[sooner], &[May::LoseReplies], &[Without::CandidateOfBegin]);
    fails("OUTLIVES", gets(1), &[sooner, later], &mute, &[Without::AgeOfSole]);
    let late = [until(A, 4), until(B, 1)];
    fails("OUTLIVES", gets(1), &late, &[May::Mute(B)], &[Without::LookOfBegin]);
    if few(0, 1) > 0 {
        let same = [vivify_until(A, 4), until(B, 4), until(C, END)];
        fails("OUTLIVES", gets(1), &same, &[], &[Without::CellOfEach]);
        let writes = [until(A, 4), until(B, 2), add_until(B, 4)];
        fails("OUTLIVES", gets(1), &writes, &[May::DelayReplies], &[Without::AgeOfEnd]);
    }
}

#[test]
fn it_must_be_known_how_late_a_write_may_have_been_applied() {
    let lost = [May::Pass, May::LoseReplies];
    fails("OUTLIVES", gets(1), &[until(A, 1)], &[May::Pass], &[Without::LateOfEnd]);
    fails("OUTLIVES", gets(1), &[until(A, 4), until(B, 1)], &lost, &[Without::OpenOfBegin]);
}

#[test]
fn firm_must_say_that_there_is_no_other_end() {
    let writes = [until(A, 1), until(B, 4)];
    let taken = [May::LoseCell, May::Mute(A)];
    for without in
        [Without::OrderOfSole, Without::WordsOfEnd, Without::DoubtOfEnd, Without::FirmOfOld]
    {
        fails("OUTLIVES", gets(1), &writes, &taken, &[without]);
    }
    fails("OUTLIVES", gets(1), &writes[..1], &taken, &[Without::DoubtOfTaken]);
    fails("OUTLIVES", gets(1), &[unparsed_until(A, 1)], &[], &[Without::EpochOfFirm]);
}

// What is there for caution only: taken out, nothing changes.

#[test]
fn the_generation_of_write_end_and_of_a_failed_fill_may_be_missing() {
    let writes = [set(A, 0), set(B, 0)];
    let without = [Without::GenOfEnd, Without::GenOfUnlock];
    explore_holds(&system(gets(few(2, 3)), &writes, &[May::Mute(A)], &without));
    explore_holds(&system(gets(few(3, 4)), &writes, &[], &without));
}

#[test]
fn a_hit_need_not_look_at_the_word_again() {
    let without = [Without::WordCheck];
    explore_holds(&system(gets(3), &[set(A, 0), set(B, 0)], &[], &without));
    explore_holds(&system(gets(few(3, 4)), &[set(A, 0)], &[May::Cached], &without));
}
