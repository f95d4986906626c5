/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * What the tool takes from these headers besides the types in the maps: enumerators,
 * which reach it by this object's BTF (src/abi.rs), and arithmetic that it repeats in
 * Rust, which tests/abi.rs compares by running bmc_lookup. Nothing here is ever
 * attached.
 */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "bmc.h"

/* Only the seeds and the size of the index are set. */
const volatile struct bmc_config cfg;

#include "proto.h"
#include "maps.bpf.h"
#include "packet.bpf.h"
#include "expiry.bpf.h"
#include "heat.bpf.h"
#include "slab.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* Enumerators of other headers than bmc.h. */
enum bmc_abi {
	ABI_FLOW_WAYS = BMC_FLOW_WAYS,
	ABI_HEAT_BITS = HEAT_BITS,
	ABI_SLOT_REACH = SLOT_REACH,
};

/* Clang puts only those enums into BTF that something has the type of. */
const volatile enum bmc_abi bmc_abi;
const volatile enum bmc_limit bmc_limit;
const volatile enum bmc_word bmc_word;

/* What the lookup of an entry goes by: a key, and the state of a slot. */
struct bmc_question {
	struct slot_key key;
	__u64 era;
	__u32 units; /* of a slot */
	__u8 heat;
};

struct bmc_answer {
	__u64 hash;
	__u32 bucket;
	__u32 slots; /* of a slab */
	__u32 heat;
};

struct bmc_question question;
struct bmc_answer answer;

SEC("syscall")
int bmc_lookup(void *ctx)
{
	(void)ctx;
	answer.hash = slot_hash(&question.key);
	answer.bucket = bucket_of(answer.hash);
	answer.slots = class_slots(question.units);
	answer.heat = heat_count(question.heat, question.era);
	return 0;
}
