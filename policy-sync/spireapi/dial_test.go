package spireapi

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestThreat25_AServerMachineThatIsSilentlyLostIsGivenUp: the kernel, not a quarter of an hour later, says that the other end is gone.
func TestThreat25_AServerMachineThatIsSilentlyLostIsGivenUp(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	conn, err := dialer().DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var limit int
	if e := raw.Control(func(fd uintptr) { limit, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	if want := int(unheard.Milliseconds()); limit != want {
		t.Errorf("what is sent may stay unacknowledged for %d ms, want %d", limit, want)
	}
}
