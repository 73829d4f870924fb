// Package conntrack deletes entries of the kernel's connection tracking table, in the network namespace of the calling thread.
//
// One sweep is one dump of the table, IPv4 and IPv6, of which the matching entries are deleted one by one. The kernel's own
// filters (CTA_FILTER) compare one pair of addresses a dump, so they would cost a walk over the table for each revoked address
// and direction. Messages are carried by github.com/vishvananda/netlink, which kube-proxy and Calico clean this table with, and
// which hands a dump on message by message; its own ConntrackDeleteFilters reads every field of every entry but not the status, and
// took twice the time in a table of 20,000 (BenchmarkSweep measures both; github.com/ti-mo/conntrack's took three times as long).
//
// It decides nothing: what is deleted is the caller's to say.
package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/keelson-project/keelson/policy-sync/flows"
)

// attempts is how often an interrupted dump is made within one sweep.
const attempts = 3

// timeout is how long the kernel may take over one message.
var timeout = unix.Timeval{Sec: 5}

// Table is the connection tracking table of the network namespace of the thread that sweeps it. A program whose threads
// change namespaces locks the sweeping one.
type Table struct{}

// Check tells whether the table can be swept: whether the kernel has it and lets this process at it.
func (Table) Check() error {
	s, err := open()
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.request(statistics, unix.NLM_F_ACK, unix.AF_UNSPEC, nil).Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		return explain("ask for statistics", err)
	}
	return nil
}

// Sweep deletes the entries for which cut says so. A dump that the kernel interrupts is made again; what it showed until then is
// deleted all the same.
func (Table) Sweep(cut func(*flows.Entry) bool) (flows.Swept, error) {
	var out flows.Swept
	s, err := open()
	if err != nil {
		return out, err
	}
	defer s.Close()
	for try := 1; ; try++ {
		err := s.sweep(cut, &out)
		if err == nil || try == attempts || !passing(err) {
			return out, err
		}
	}
}

// passing tells whether an error goes away by itself.
func passing(err error) bool {
	for _, e := range []error{unix.EINTR, unix.ENOBUFS, unix.EBUSY, unix.EAGAIN, netlink.ErrDumpInterrupted} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *socket) sweep(cut func(*flows.Entry) bool, out *flows.Swept) error {
	var doomed []message
	var m message
	var malformed error
	out.Entries = 0
	err := s.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, unix.AF_UNSPEC, nil).ExecuteIter(unix.NETLINK_NETFILTER, 0, func(b []byte) bool {
		out.Entries++
		if err := m.parse(b); err != nil {
			malformed = err
		} else if cut(&m.Entry) {
			doomed = append(doomed, m)
		}
		return true
	})
	if err != nil {
		err = explain("dump", err)
	}
	return errors.Join(err, malformed, s.remove(doomed, out))
}

// remove deletes entries. One that is gone already is no error.
func (s *socket) remove(doomed []message, out *flows.Swept) error {
	failed := 0
	var first error
	for i := range doomed {
		_, err := s.request(nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK, doomed[i].family, doomed[i].name()).Execute(unix.NETLINK_NETFILTER, 0)
		switch {
		case err == nil:
			out.Cut++
		case !errors.Is(err, unix.ENOENT):
			failed++
			if first == nil {
				first = explain("delete", err)
			}
		}
	}
	out.Failed = failed
	if first != nil {
		return fmt.Errorf("%w (%d of %d entries)", first, failed, len(doomed))
	}
	return nil
}

// socket is a netlink socket to netfilter.
type socket struct {
	*nl.NetlinkSocket
	handle *nl.SocketHandle
}

func open() (*socket, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, explain("open a netlink socket", err)
	}
	if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout)); err != nil {
		s.Close()
		return nil, explain("open a netlink socket", err)
	}
	return &socket{NetlinkSocket: s, handle: &nl.SocketHandle{Socket: s}}, nil
}

// statistics is IPCTNL_MSG_CT_GET_STATS.
const statistics = 5

func (s *socket) request(operation, flags int, family uint8, attributes []byte) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: s.handle}
	r.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	r.AddRawData(attributes)
	return r
}

// explain says what is missing where the kernel's answer means that something is.
func explain(what string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EPERM):
		hint = ": the process lacks CAP_NET_ADMIN over its network namespace (give the container the capability NET_ADMIN and run it as user 0)"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		hint = ": the kernel does not serve the connection tracking table (load the module nf_conntrack_netlink)"
	}
	return fmt.Errorf("conntrack: %s: %w%s", what, err, hint)
}

// Local are the addresses of this network namespace.
func Local() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("conntrack: own addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, addr.Unmap())
			}
		}
	}
	return out, nil
}
