// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! Which TCP connections have a place in the table.

use std::thread::sleep;
use std::time::Duration;

use crate::connection::Connection;
use crate::fixture::Config;
use crate::fixture::FLOW_WAYS;
use crate::scene::Scene;
use crate::scene::UNCERTAIN;
use crate::scene::UNFOLLOWED;
use crate::scene::UNMATCHED;
use crate::scene::WRITE;
use crate::scene::v4;
use crate::scene::v6;

/// Longer than a connection may be silent while others want its place.
const IDLE: Duration = Duration::from_millis(10_500);

/// A table with room for sixteen, and as many connections that are followed.
fn full() -> Option<(Scene, Vec<Connection>)> {
    let scene = Scene::load(&Config { flow_sets: 1, ..Config::default() })?;
    let tcp = (0..FLOW_WAYS).map(|_| followed(&scene)).collect();
    Some((scene, tcp))
}

fn followed(scene: &Scene) -> Connection {
    let mut tcp = scene.connect(&v4());
    writes(scene, &mut tcp);
    tcp
}

fn writes(scene: &Scene, tcp: &mut Connection) {
    scene.asks(tcp, "delete key\r\n", WRITE);
    scene.says(tcp, "DELETED\r\n", &[]);
}

#[test]
fn a_full_table_takes_no_more_and_is_safe() {
    let Some((scene, mut all)) = full() else {
        return;
    };
    let mut tcp = scene.connect(&v6());
    for _ in 0..3 {
        scene.asks(&mut tcp, "get key\r\n", UNFOLLOWED);
        scene.says(&mut tcp, "END\r\n", UNMATCHED);
    }
    for tcp in &mut all {
        writes(&scene, tcp);
    }
    // When it gets a place at last, it was not silent until then.
    all.remove(7).finish_server();
    scene.asks(&mut tcp, "delete key\r\n", UNCERTAIN);
}

#[test]
fn a_connection_that_ends_makes_room() {
    let Some((scene, mut all)) = full() else {
        return;
    };
    for end in [Connection::finish_server, Connection::reset] {
        end(all.remove(3));
        all.push(followed(&scene));
    }
    let mut tcp = scene.connect(&v6());
    scene.asks(&mut tcp, "get key\r\n", UNFOLLOWED);
    for tcp in &mut all {
        writes(&scene, tcp);
    }
}

#[test]
fn a_connection_that_was_idle_makes_room_and_may_come_back() {
    let Some((scene, mut all)) = full() else {
        return;
    };
    sleep(IDLE);
    // That does not let the cache sleep.
    assert!(!scene.has(&v4(), "key"));
    for tcp in &mut all[1..] {
        writes(&scene, tcp);
    }
    followed(&scene).finish_server();
    writes(&scene, &mut all[0]);
}

/// What an earlier connection of the same client's port has left in the table,
/// because its end was not seen, is not taken for the new one's.
#[test]
fn a_port_used_again_is_a_new_connection() {
    for flow in [v4(), v6()] {
        let Some(scene) = Scene::load(&Config::default()) else {
            return;
        };
        let mut old = scene.connect(&flow);
        let port = old.port();
        scene.asks(&mut old, "set other 0 0 1\r\nx\r\n", WRITE);
        scene.bmc.detach();
        old.reset();
        sleep(Duration::from_millis(1100));
        scene.bmc.attach();
        let mut new = Connection::open_to(&flow, port, flow.target);
        writes(&scene, &mut new);
        scene.is_open("after the reply", "key");
    }
}
