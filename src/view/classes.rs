// SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause
//! How the memory for slots is divided among the sizes of slots.

use anyhow::{Result, bail};
use libbpf_rs::{MapCore as _, MapFlags};
use serde_json::{Value, json};

use super::lookup::slots_of_slab;
use crate::abi::types::{bmc_class, bmc_pool};
use crate::abi::{SLAB_SIZE, UNIT};
use crate::host::sys;
use crate::instance::Instance;

/// All slots of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Bytes of a slot.
    pub size: u64,
    /// Slabs that are cut into such slots.
    pub slabs: u64,
    /// Slots in these slabs.
    pub slots: u64,
    /// Slots that hold, or once held, an entry.
    pub used: u64,
}

impl Class {
    /// Reads the classes of an instance; those without a slab are left out.
    pub fn read_all(instance: &Instance) -> Result<Vec<Self>> {
        let pool = instance.pins.map("pool")?.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY)?;
        let pool = pool.and_then(|bytes| sys::plain_from::<bmc_pool>(&bytes));
        let (Some(rodata), Some(pool)) = (instance.rodata()?, pool) else {
            bail!("the cache is another version's");
        };
        let classes = rodata.class_units.iter().zip(&pool.classes);
        Ok(classes.filter_map(|(units, class)| Self::new(*units, class)).collect())
    }

    fn new(units: u8, class: &bmc_class) -> Option<Self> {
        let size = u64::from(units) * UNIT as u64;
        let each = slots_of_slab(units.into());
        let slabs = u64::from(class.slabs);
        let older = slabs.checked_sub(1)?;
        Some(Self {
            size,
            slabs,
            slots: slabs * each,
            used: older * each + u64::from(class.taken).min(each),
        })
    }

    /// Memory of the slabs, in bytes.
    pub fn bytes(&self) -> u64 {
        self.slabs * SLAB_SIZE as u64
    }
}

/// The classes as `status --json` has them.
pub fn classes_json(classes: &[Class]) -> Value {
    let object = |c: &Class| {
        json!({
            "slot_bytes": c.size,
            "slabs": c.slabs,
            "bytes": c.bytes(),
            "slots": c.slots,
            "used": c.used,
        })
    };
    classes.iter().map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_slots_of_all_slabs_and_the_used_ones_of_the_newest() {
        let class = |slabs, taken| Class::new(5, &bmc_class { slabs, taken, ..Default::default() });
        assert_eq!(class(0, 0), None);
        assert_eq!(class(1, 5), Some(Class { size: 80, slabs: 1, slots: 3258, used: 5 }));
        assert_eq!(
            class(3, 7),
            Some(Class { size: 80, slabs: 3, slots: 9774, used: 6523 }),
            "all slots of the older slabs are used"
        );
    }
}
