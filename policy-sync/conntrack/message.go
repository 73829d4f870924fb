package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/keelson-project/keelson/policy-sync/flows"
)

// Attributes that nl does not name (linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h).
const (
	statusAnswered = 1 << 1 // IPS_SEEN_REPLY
	typeMask       = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	headerLen      = 4      // struct nfgenmsg, and struct nlattr
)

var errMalformed = errors.New("conntrack: the kernel sent an entry that cannot be read")

// message is one entry of a dump. Its parts alias the dump's buffer.
type message struct {
	flows.Entry
	family uint8
	// original, id and zone are whole attributes. They name the entry in a request to delete it; the id keeps a newer entry
	// between the same ends from being deleted in its place, which the next sweep judges by itself.
	original, id, zone []byte
}

// parse reads an entry as the kernel writes it. Only the two tuples, the status and what names the entry are looked at.
func (m *message) parse(b []byte) error {
	*m = message{}
	if len(b) < headerLen {
		return errMalformed
	}
	m.family = b[0]
	err := attributes(b[headerLen:], func(kind uint16, value, whole []byte) error {
		switch kind {
		case nl.CTA_TUPLE_ORIG:
			if m.original != nil { // it would be named by another tuple than it was judged by
				return errMalformed
			}
			m.original = whole
			return m.tuple(value, &m.Original)
		case nl.CTA_TUPLE_REPLY:
			return m.tuple(value, &m.Reply)
		case nl.CTA_STATUS:
			if len(value) != 4 {
				return errMalformed
			}
			m.Answered = binary.BigEndian.Uint32(value)&statusAnswered != 0
		case nl.CTA_ID:
			m.id = whole
		case nl.CTA_ZONE:
			m.zone = whole
		}
		return nil
	})
	if err == nil && m.original == nil {
		return errMalformed
	}
	return err
}

func (m *message) tuple(b []byte, t *flows.Tuple) error {
	return attributes(b, func(kind uint16, value, _ []byte) error {
		switch kind {
		case nl.CTA_TUPLE_IP:
			return attributes(value, func(kind uint16, value, _ []byte) error { return address(t, kind, value) })
		case nl.CTA_TUPLE_PROTO:
			return attributes(value, func(kind uint16, value, _ []byte) error { return m.protocol(t, kind, value) })
		}
		return nil
	})
}

func address(t *flows.Tuple, kind uint16, value []byte) error {
	addr, ok := netip.AddrFromSlice(value)
	if !ok {
		return errMalformed
	}
	switch kind {
	case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
		t.Source = addr.Unmap()
	case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
		t.Destination = addr.Unmap()
	}
	return nil
}

func (m *message) protocol(t *flows.Tuple, kind uint16, value []byte) error {
	switch kind {
	case nl.CTA_PROTO_NUM:
		if len(value) != 1 {
			return errMalformed
		}
		m.Protocol = value[0]
	case nl.CTA_PROTO_SRC_PORT, nl.CTA_PROTO_DST_PORT:
		if len(value) != 2 {
			return errMalformed
		}
		port := binary.BigEndian.Uint16(value)
		if kind == nl.CTA_PROTO_SRC_PORT {
			t.SourcePort = port
		} else {
			t.DestinationPort = port
		}
	}
	return nil
}

// attributes calls visit for each attribute of b.
func attributes(b []byte, visit func(kind uint16, value, whole []byte) error) error {
	for len(b) >= headerLen {
		length := int(binary.NativeEndian.Uint16(b))
		if length < headerLen || length > len(b) {
			return errMalformed
		}
		if err := visit(binary.NativeEndian.Uint16(b[2:])&typeMask, b[headerLen:length], b[:length]); err != nil {
			return err
		}
		b = b[min(align(length), len(b)):]
	}
	return nil
}

func align(n int) int { return (n + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1) }

// name writes the attributes that name the entry.
func (m *message) name() []byte {
	out := make([]byte, 0, align(len(m.original))+align(len(m.id))+align(len(m.zone)))
	for _, attribute := range [][]byte{m.original, m.id, m.zone} {
		out = append(out, attribute...)
		out = append(out, make([]byte, align(len(attribute))-len(attribute))...)
	}
	return out
}
