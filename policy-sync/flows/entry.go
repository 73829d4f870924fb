package flows

import "net/netip"

// Tuple is one direction of a flow. Ports are 0 for protocols that have none.
type Tuple struct {
	Source, Destination         netip.Addr
	SourcePort, DestinationPort uint16
}

// Entry is an entry of the kernel's connection tracking table.
type Entry struct {
	// Original is the direction of the first packet, before translation; Reply is the direction of the answers as the far end
	// sends them. A pod that is reached through a Service's address is the source of Reply only, and a client whose address is
	// masqueraded is the source of Original only.
	Original, Reply Tuple
	// Protocol is the IP protocol's number.
	Protocol uint8
	// Answered is set once packets went both ways.
	Answered bool
}

// Swept says what one pass over the table did.
type Swept struct {
	// Entries is how many the table had, Cut how many were deleted, Failed how many should have been.
	Entries, Cut, Failed int
}

// Match tells whether an end of the flow has a revoked address.
func (t Targets) Match(e *Entry) bool {
	return t.Has(e.Original.Source) || t.Has(e.Original.Destination) || t.Has(e.Reply.Source) || t.Has(e.Reply.Destination)
}

// Opener tells whether it was a revoked address that opened the flow.
func (t Targets) Opener(e *Entry) bool { return t.Has(e.Original.Source) }

// IP protocols and ports of what every pod of an enrolled namespace may call, attested or not (package calico, infrastructure).
const (
	tcp, udp   = 6, 17
	dnsPort    = 53
	istiodPort = 15012
)

// Stands tells whether a flow shows, long after its address was revoked, that the drop is not in place: packets go both ways,
// and it is none that is to be expected even so. Those are flows with the node itself (kubelet's probes: Felix does not police
// them), name lookups and istiod's configuration, which revoked pods call in namespaces that are not enrolled, and flows without
// an answer: the near end's node lets out what the far end's node drops.
func (t Targets) Stands(e *Entry, local map[netip.Addr]struct{}) bool {
	_, fromHere := local[e.Original.Source]
	_, toHere := local[e.Reply.Source]
	return e.Answered && !fromHere && !toHere && t.Match(e) && (!t.Opener(e) || !infrastructure(e))
}

func infrastructure(e *Entry) bool {
	port := e.Reply.SourcePort // the far end's, after translation
	return e.Protocol == udp && port == dnsPort || e.Protocol == tcp && (port == dnsPort || port == istiodPort)
}
