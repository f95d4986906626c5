/* SPDX-License-Identifier: LGPL-2.1-only OR BSD-2-Clause */
/*
 * Loaded into memcached (LD_PRELOAD, see reuseport.rs) to give each of its workers a
 * UDP socket of its own.
 *
 * memcached binds one UDP socket for each address and hands dup()s of it to the
 * workers: all of them wake for a datagram, and take turns at the lock of one
 * queue. Here the copy becomes a socket of its own, bound to the same address
 * with SO_REUSEPORT, and a program chooses one for each datagram. The first one gets
 * that option only after it was bound, so that a port that is busy stays an error.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What is taken modulo the sockets to choose one; 0 to leave that to the kernel. */
static unsigned int chooser;

/* Reads what reuseport.rs sets. Programs that memcached might start are not memcached. */
__attribute__((constructor)) static void begin(void)
{
	const char *before = getenv("BMC_LD_PRELOAD"), *by = getenv("BMC_STEER");

	if (by && !strcmp(by, "datagram"))
		chooser = SKF_AD_OFF + SKF_AD_RANDOM;
	else if (by && !strcmp(by, "cpu"))
		chooser = SKF_AD_OFF + SKF_AD_CPU;
	unsetenv("BMC_STEER");
	if (before)
		setenv("LD_PRELOAD", before, 1);
	else
		unsetenv("LD_PRELOAD");
	unsetenv("BMC_LD_PRELOAD");
}

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof(value);

	return getsockopt(fd, level, name, &value, &len) ? -1 : value;
}

static int set(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value));
}

/*
 * Has so many sockets chosen from: the kernel numbers them in the order in which
 * they were bound (socket(7), SO_ATTACH_REUSEPORT_CBPF). It forgets the program
 * before.
 */
static int choose(int fd, unsigned int sockets)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, chooser),
		BPF_STMT(BPF_ALU | BPF_MOD | BPF_K, sockets),
		BPF_STMT(BPF_RET | BPF_A, 0),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(*code), code };

	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program,
			  sizeof(program));
}

/* A socket like fd, bound to the same address. -1, with errno, if it cannot be. */
static int twin(int fd, int domain, const struct sockaddr *address, socklen_t len)
{
	/* memcached makes all copies of one before it goes on to the next. */
	static int first = -1;
	static unsigned int sockets;
	int copy = socket(domain, SOCK_DGRAM, 0), error;

	if (copy < 0)
		return -1;
	if (fd != first) {
		first = fd;
		sockets = 1;
	}
	/* The kernel tells twice the size that it was told. */
	if ((domain == AF_INET6 && set(copy, IPPROTO_IPV6, IPV6_V6ONLY,
				       option(fd, IPPROTO_IPV6, IPV6_V6ONLY))) ||
	    set(copy, SOL_SOCKET, SO_SNDBUF,
		option(fd, SOL_SOCKET, SO_SNDBUF) / 2) ||
	    set(fd, SOL_SOCKET, SO_REUSEPORT, 1) ||
	    set(copy, SOL_SOCKET, SO_REUSEPORT, 1) ||
	    bind(copy, address, len) || (chooser && choose(fd, sockets + 1)) ||
	    fcntl(copy, F_SETFL, fcntl(fd, F_GETFL)) < 0) {
		error = errno;
		close(copy);
		errno = error;
		return -1;
	}
	sockets++;
	return copy;
}

int dup(int fd)
{
	int domain = option(fd, SOL_SOCKET, SO_DOMAIN);
	struct sockaddr_storage address;
	socklen_t len = sizeof(address);

	if ((domain == AF_INET || domain == AF_INET6) &&
	    option(fd, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM &&
	    !getsockname(fd, (struct sockaddr *)&address, &len))
		return twin(fd, domain, (struct sockaddr *)&address, len);
	return syscall(SYS_dup, fd);
}
