// Package workloadclaim is the vocabulary of workload attestation: what can be known about a workload (Claims) and
// how SPIRE and policy-sync spell it (Selector). It verifies nothing; whoever fills a Claims has proved each fact.
package workloadclaim

import (
	"errors"
	"fmt"
	"slices"
)

// Fact is a yes-or-no property that may also be unproven. The zero value is Unproven, so what nobody proved never
// reads as "no".
type Fact uint8

// The three values of a Fact.
const (
	Unproven Fact = iota
	No
	Yes
)

// FactOf is the proven fact b.
func FactOf(b bool) Fact {
	if b {
		return Yes
	}
	return No
}

// String is "true", "false" or "unproven".
func (f Fact) String() string {
	switch f {
	case No:
		return "false"
	case Yes:
		return "true"
	default:
		return "unproven"
	}
}

// Claims are the proved facts about one workload. Empty text, zero digests and Unproven mean "not proved" and
// yield no selector.
type Claims struct {
	Node           string // name of the Kubernetes node that this attestor serves (its configuration)
	Namespace      string // from the container runtime's labels, which the kubelet sets
	PodName        string
	PodUID         string
	Container      string
	ServiceAccount string // from the API's Pod object: CRI has none

	Config    ConfigDigest     // of the image that the runtime started
	Manifests []ManifestDigest // manifests whose config is Config
	SignedBy  []string         // names of the verifiers that accepted the image

	Privileged  Fact
	HostPID     Fact
	HostNetwork Fact
	HostIPC     Fact

	// HostPath tells whether a folder or file of the node is mounted that is neither the pod's own nor allowed: into the container, as the
	// runtime reports, or into any of the pod's, by the pod's spec.
	HostPath Fact

	// Baseline and Restricted tell whether the pod's spec and the runtime's report meet a level of the Pod Security
	// Standards (package confined).
	Baseline, Restricted Fact
	// Posture is what the runtime reports of how the container is confined.
	Posture Posture
	// RuntimeClass is the pod's, from the API; RuntimeHandler is its sandbox's, from the runtime; both are "" for the
	// default one. Sandbox is what that handler is (SandboxRunc, …), "" if it is not known.
	RuntimeClass, RuntimeHandler, Sandbox string
}

// meets tells whether a level is proved. A container that is privileged, is in a namespace of its node or has a path of
// it meets none, whatever level says.
func (c Claims) meets(level Fact) bool {
	for _, f := range []Fact{c.Privileged, c.HostPID, c.HostNetwork, c.HostIPC, c.HostPath} {
		if f != No {
			return false
		}
	}
	return level == Yes
}

// Limits on what one workload may claim.
const (
	maxManifests = 16
	maxVerifiers = 64
)

// Selectors lists the selectors of all proved facts, sorted and without doubles. A fact whose text cannot be a
// selector value is an error: it came from a peer that does not follow Kubernetes' naming rules, and leaving out
// one selector of a confused peer would still emit the others.
func (c Claims) Selectors() ([]Selector, error) {
	if len(c.Manifests) > maxManifests {
		return nil, fmt.Errorf("workloadclaim: %d manifests for one image, the limit is %d", len(c.Manifests), maxManifests)
	}
	if len(c.SignedBy) > maxVerifiers {
		return nil, fmt.Errorf("workloadclaim: %d verifiers for one image, the limit is %d", len(c.SignedBy), maxVerifiers)
	}
	var out []Selector
	add := func(k Kind, value string) {
		if value != "" {
			out = append(out, Selector{Kind: k, Value: value})
		}
	}
	add(KindNode, c.Node)
	add(KindNamespace, c.Namespace)
	add(KindPodName, c.PodName)
	add(KindPodUID, c.PodUID)
	add(KindContainer, c.Container)
	add(KindServiceAccount, c.ServiceAccount)
	add(KindImageConfig, c.Config.String())
	for _, m := range c.Manifests {
		add(KindImageManifest, m.String())
	}
	for _, v := range c.SignedBy {
		add(KindSignedBy, v)
	}
	addFact := func(k Kind, f Fact) {
		if f != Unproven {
			add(k, f.String())
		}
	}
	addFact(KindPrivileged, c.Privileged)
	addFact(KindHostPID, c.HostPID)
	addFact(KindHostNetwork, c.HostNetwork)
	addFact(KindHostIPC, c.HostIPC)
	addFact(KindHostPath, c.HostPath)
	if c.meets(c.Baseline) {
		add(KindRuntime, RuntimeBaseline)
		if c.Restricted == Yes {
			add(KindRuntime, RuntimeRestricted)
		}
	}
	if err := c.Posture.selectors(add); err != nil {
		return nil, err
	}
	add(KindRuntimeClass, c.RuntimeClass)
	add(KindRuntimeHandler, c.RuntimeHandler)
	add(KindSandbox, c.Sandbox)
	return sortValid(out)
}

func sortValid(selectors []Selector) ([]Selector, error) {
	var problems []error
	for _, s := range selectors {
		if err := s.Validate(); err != nil {
			problems = append(problems, err)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	slices.SortFunc(selectors, Selector.Compare)
	return slices.Compact(selectors), nil
}
