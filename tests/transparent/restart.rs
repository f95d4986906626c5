// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! A memcached that starts anew has nothing; neither has bmc.

use std::thread;

use crate::LASTING;
use crate::common::Net;
use crate::common::can_run;
use crate::lane::DISTRUST;
use crate::pair::Compared;
use crate::pair::From;
use crate::pair::Pair;

#[test]
fn knows_nothing_after_a_restart() {
    const KEYS: [&str; 3] = ["0", "1", "2"];
    let name = "knows_nothing_after_a_restart";
    if !can_run(name) {
        return;
    }
    let pair = &mut Pair::new(name, &[Net::SERVER4], LASTING);
    for half in [&b""[..], b"set 1 0 0 5\r\nhe", b"get 0", b"\x80\x01\0\x01"] {
        thread::sleep(DISTRUST);
        let mut tcp = pair.connect(From::Outside(Net::SERVER4));
        let hits = pair.bmc.total("hits");
        for key in KEYS {
            pair.tell(&mut tcp, format!("set {key} 0 0 3\r\nold\r\n").as_bytes());
            for _ in 0..2 {
                pair.get(0, &[key.as_bytes()]);
            }
        }
        assert_eq!(pair.bmc.total("hits"), hits + 3, "all are learnt: {}", pair.bmc.stats());
        // Something is half said meanwhile.
        pair.tell(&mut tcp, half);
        pair.restart();
        pair.answer(&mut tcp, Compared::Exactly);
        assert_eq!(tcp.closed, [true; 2], "its connections are gone");
        for key in KEYS {
            assert_eq!(pair.get(0, &[key.as_bytes()]), b"END\r\n", "after {}", half.escape_ascii());
        }
    }
}
