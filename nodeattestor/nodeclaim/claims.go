package nodeclaim

import (
	"fmt"
	"slices"
	"strings"
)

// Component names a part of the measured boot that reference values can pin.
type Component string

// The components, in boot order.
const (
	Firmware    Component = "firmware"
	SecureBoot  Component = "secureboot"
	BootLoader  Component = "bootloader"
	Kernel      Component = "kernel"
	Initrd      Component = "initrd"
	CommandLine Component = "cmdline"
)

// Components lists every component in boot order.
func Components() []Component {
	return []Component{Firmware, SecureBoot, BootLoader, Kernel, Initrd, CommandLine}
}

// Claims are what an appraisal proved about a node. Only package verify makes
// them, and only verified facts are in them; they alone become selectors, labels
// and reports.
type Claims struct {
	EK           EKHash
	EKCertified  bool   // the EK came from a certificate under a configured root
	Manufacturer string // TPM vendor id from the EK certificate ("id:53544D20"), "" when it has none
	Node         string // Kubernetes node name that the EK is bound to, "" when unbound
	Reference    string // name of the reference set that matched
	SecureBoot   Tristate
	IMA          IMAState
	Tags         map[string]string
	TagSerial    uint64
	PCRs         map[HashAlg]map[int][]byte // quoted values
	ResetCount   uint32
	RestartCount uint32
	Weak         bool // rests on SHA-1 alone
	// Notes are what nothing refuses and an operator should know: resets in between, a new attestation key. They
	// become no selector.
	Notes []string
}

// Tristate is a fact that evidence can prove, disprove or leave open.
type Tristate int

// The states; the zero value is the one that grants nothing.
const (
	Unknown Tristate = iota
	False
	True
)

// String is "unknown", "false" or "true".
func (t Tristate) String() string { return [...]string{"unknown", "false", "true"}[t] }

// IMAState tells what the IMA log proved.
type IMAState int

// The states; the zero value is the one that grants nothing.
const (
	IMAAbsent IMAState = iota // no IMA evidence was asked for or checked
	IMAClean                  // the whole log replays and every entry is allowed
)

// SelectorLimit bounds the number of selectors of one node, so that tags or PCRs
// cannot make SPIRE's registration queries expensive.
const SelectorLimit = 64

// Selectors writes the claims as SPIRE selector values: lower case, sorted,
// without repeats. pcrs names the PCR values that become selectors, usually none.
// It fails when there are more than SelectorLimit.
func (c Claims) Selectors(pcrs []Selection) ([]string, error) {
	out := []string{"ek:sha256:" + c.EK.String()}
	add := func(kind, value string) {
		if value != "" {
			out = append(out, kind+":"+strings.ToLower(value))
		}
	}
	add("ref", c.Reference)
	add("node", c.Node)
	add("tpm:manufacturer", c.Manufacturer)
	if c.SecureBoot != Unknown {
		add("secureboot", c.SecureBoot.String())
	}
	if c.IMA == IMAClean {
		add("ima", "clean")
	}
	if c.Weak {
		add("weak", "true")
	}
	for k, v := range c.Tags {
		add("tag:"+strings.ToLower(k), v)
	}
	for _, sel := range pcrs {
		for _, i := range sel.PCRs {
			v, ok := c.PCRs[sel.Bank][i]
			if !ok {
				return nil, fmt.Errorf("nodeclaim: selectors: PCR %d of bank %s was not quoted", i, sel.Bank)
			}
			add("pcr", fmt.Sprintf("%s:%d:%x", sel.Bank, i, v))
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) > SelectorLimit {
		return nil, fmt.Errorf("nodeclaim: %d selectors, more than the %d allowed; name fewer tags or PCRs", len(out), SelectorLimit)
	}
	return out, nil
}

// AgentPath is the path of the SPIFFE ID that SPIRE gives the node's agent:
// /spire/agent/keelson_tpm/<EK hash>.
func (c Claims) AgentPath() string { return AgentPath(c.EK) }

// PluginName is the name under which SPIRE loads both node attestor plugins.
const PluginName = "keelson_tpm"

// AgentPath is the SPIFFE ID path of the agent on the machine with this EK.
func AgentPath(ek EKHash) string { return "/spire/agent/" + PluginName + "/" + ek.String() }
