package spireapi

import (
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// unheard is how long the server's machine may leave what was sent unacknowledged. A machine that lost its power or its network
// says no word of it, and without a limit the kernel would go on for a quarter of an hour, with policy-sync's every question
// waiting behind it. gRPC's own keepalive is no way: servers take pings that come oftener than every five minutes for abuse.
const unheard = 10 * time.Second

// overTCP are the options of a connection over TCP: a direct one, past any proxy that the environment names for registries.
func overTCP() grpc.DialOption {
	d := dialer()
	return grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", address)
	})
}

func dialer() *net.Dialer {
	return &net.Dialer{Timeout: 5 * time.Second, Control: limitUnheard,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: unheard, Interval: unheard / 2, Count: 2}}
}

// patient is how a lost connection is made again: soon, for nothing opens until then, and yet not in a tight loop.
func patient() grpc.DialOption {
	return grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 5 * time.Second,
		Backoff: backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}})
}

// limitUnheard sets unheard on a socket (tcp(7): TCP_USER_TIMEOUT, milliseconds).
func limitUnheard(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unheard.Milliseconds()))
	}); e != nil {
		return e
	}
	return err
}
