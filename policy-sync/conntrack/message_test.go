package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/keelson-project/keelson/policy-sync/flows"
)

// attr is an attribute as the kernel writes it.
func attr(kind uint16, parts ...[]byte) []byte {
	b := make([]byte, 4)
	for _, p := range parts {
		b = append(b, p...)
	}
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func addr(text string) []byte { return netip.MustParseAddr(text).AsSlice() }

const nested = unix.NLA_F_NESTED

// translated is a flow to a Service's address: 10.1.0.2:40000 → 10.96.0.10:80, answered by 10.2.0.2:8080.
func translated() []byte {
	proto := attr(nested|2, attr(1, []byte{6}), attr(2, []byte{0x9c, 0x40}), attr(3, []byte{0, 80}))
	back := attr(nested|2, attr(1, []byte{6}), attr(2, []byte{0x1f, 0x90}), attr(3, []byte{0x9c, 0x40}))
	return slicesConcat([]byte{unix.AF_INET, 0, 0, 0},
		attr(nested|1, attr(nested|1, attr(1, addr("10.1.0.2")), attr(2, addr("10.96.0.10"))), proto),
		attr(nested|2, attr(nested|1, attr(1, addr("10.2.0.2")), attr(2, addr("10.1.0.2"))), back),
		attr(18, []byte{0, 7}), attr(3, []byte{0, 0, 1, 0x8e}), attr(7, []byte{0, 0, 0, 9}), attr(12, []byte{1, 2, 3, 4}))
}

func slicesConcat(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func sixes() []byte {
	return slicesConcat([]byte{unix.AF_INET6, 0, 0, 0},
		attr(nested|1, attr(nested|1, attr(3, addr("fd00::1")), attr(4, addr("fd00::2"))), attr(nested|2, attr(1, []byte{58}))),
		attr(nested|2, attr(nested|1, attr(3, addr("fd00::2")), attr(4, addr("fd00::1"))), attr(nested|2, attr(1, []byte{58}))))
}

func TestParse(t *testing.T) {
	ip := netip.MustParseAddr
	for name, c := range map[string]struct {
		in   []byte
		want flows.Entry
		zone bool
	}{
		"a translated flow with a zone": {translated(), flows.Entry{Protocol: 6, Answered: true,
			Original: flows.Tuple{Source: ip("10.1.0.2"), Destination: ip("10.96.0.10"), SourcePort: 40000, DestinationPort: 80},
			Reply:    flows.Tuple{Source: ip("10.2.0.2"), Destination: ip("10.1.0.2"), SourcePort: 8080, DestinationPort: 40000}}, true},
		"IPv6, without ports and status": {sixes(), flows.Entry{Protocol: 58,
			Original: flows.Tuple{Source: ip("fd00::1"), Destination: ip("fd00::2")},
			Reply:    flows.Tuple{Source: ip("fd00::2"), Destination: ip("fd00::1")}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var m message
			if err := m.parse(c.in); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, m.Entry, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Error(diff)
			}
			if (m.zone != nil) != c.zone || m.original == nil || m.family != c.in[0] {
				t.Errorf("named by zone %x, tuple %x, family %d", m.zone, m.original, m.family)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	whole := translated()
	for name, in := range map[string][]byte{
		"nothing":                              nil,
		"no attributes":                        whole[:4],
		"an attribute longer than the message": whole[:len(whole)-3],
		"an attribute shorter than its header": append(slicesConcat(whole), 3, 0, 1, 0),
		"an address of five bytes":             slicesConcat(whole[:4], attr(nested|1, attr(nested|1, attr(1, []byte{1, 2, 3, 4, 5})))),
		"a port of one byte":                   slicesConcat(whole[:4], attr(nested|1, attr(nested|2, attr(2, []byte{1})))),
		"a protocol of two bytes":              slicesConcat(whole[:4], attr(nested|1, attr(nested|2, attr(1, []byte{1, 2})))),
		"a status of one byte":                 slicesConcat(whole, attr(3, []byte{1})),
	} {
		t.Run(name, func(t *testing.T) {
			var m message
			if err := m.parse(in); !errors.Is(err, errMalformed) {
				t.Errorf("got %v, want %v", err, errMalformed)
			}
		})
	}
}

// FuzzParse: whatever the kernel sends, reading ends, and what names an entry is whole attributes.
func FuzzParse(f *testing.F) {
	f.Add(translated())
	f.Add(sixes())
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		if m.parse(b) != nil {
			return
		}
		name := m.name()
		if len(name)%4 != 0 || len(name) > 3*align(len(b)) {
			t.Fatalf("%d bytes name an entry of %d", len(name), len(b))
		}
		var again message
		if err := again.parse(append([]byte{m.family, 0, 0, 0}, name...)); err != nil {
			t.Fatalf("what names an entry is unreadable: %v", err)
		}
		if again.Original != m.Original {
			t.Fatalf("%v is named as %v", m.Original, again.Original)
		}
	})
}

func TestExplainSaysWhatIsMissing(t *testing.T) {
	for err, want := range map[error]string{
		unix.EPERM:      "CAP_NET_ADMIN",
		unix.EINVAL:     "nf_conntrack_netlink",
		unix.EOPNOTSUPP: "nf_conntrack_netlink",
		unix.ENOBUFS:    "no buffer space",
	} {
		if got := explain("dump", err); !strings.Contains(got.Error(), want) || !errors.Is(got, err) {
			t.Errorf("%v is explained as %q, want %q in it", err, got, want)
		}
	}
}

func TestOnlyWhatPassesIsTriedAgain(t *testing.T) {
	for err, want := range map[error]bool{
		unix.EINTR: true, unix.ENOBUFS: true, unix.EBUSY: true, unix.EAGAIN: true, netlink.ErrDumpInterrupted: true,
		unix.EPERM: false, unix.EINVAL: false, errMalformed: false,
	} {
		if got := passing(explain("dump", err)); got != want {
			t.Errorf("%v: tried again %t, want %t", err, got, want)
		}
	}
}
