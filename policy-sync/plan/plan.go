// Package plan compares what is with what should be and says what to do, in which order.
//
// A plan is data: whoever applies it does so operation by operation, in order. The
// order is the safety argument: what closes comes before what opens, and default deny
// before the first trust label.
package plan

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson-project/keelson/policy-sync/snapshot"
)

// Phase orders operations. All operations of the closing phases (Closing reports them)
// are independent of each other: apply each even when another fails. Of the opening phases
// apply, in order, what does not rest on an operation that failed or was not tried (Missing).
type Phase int

// The phases, in order.
const (
	// Revoke cuts off what is proved bad: revoked addresses, SPIRE agents.
	Revoke Phase = iota
	// DefaultDeny puts up what denies: the tier, the default denies, STRICT.
	DefaultDeny
	// Tighten takes away: rules, labels, entries; taints on.
	Tighten
	// Program puts in place what labels will open: policies and entries. Opens.
	Program
	// Trust sets node and pod labels, lifts taints. Opens.
	Trust
	// Retire deletes denies that nothing needs any more. Opens.
	Retire
)

// String is the phase's name.
func (p Phase) String() string {
	names := [...]string{"revoke", "default-deny", "tighten", "program", "trust", "retire"}
	if p < 0 || int(p) >= len(names) {
		return fmt.Sprintf("phase(%d)", int(p))
	}
	return names[p]
}

// Closing reports whether operations of the phase only close.
func (p Phase) Closing() bool { return p <= Tighten }

// Action is what an operation does.
type Action string

// The actions.
const (
	// Create makes Object; it must not exist.
	Create Action = "create"
	// Update replaces the live object by Object, which carries the live object's
	// resourceVersion and UID: an HTTP PUT, refused when anybody wrote in between.
	Update Action = "update"
	// Patch applies MergePatch (RFC 7396, application/merge-patch+json). It carries
	// metadata.uid, so that it cannot land on a later object of the same name, and, unless
	// it only takes labels away, metadata.resourceVersion.
	Patch Action = "patch"
	// Delete deletes Target with its UID and ResourceVersion as preconditions.
	Delete Action = "delete"
	// CreateEntry, UpdateEntry and DeleteEntry are on the SPIRE server (Entry).
	CreateEntry Action = "create-entry"
	UpdateEntry Action = "update-entry"
	DeleteEntry Action = "delete-entry"
	// DeleteAgent evicts a SPIRE agent (AgentID); it may attest again. Never a ban.
	DeleteAgent Action = "delete-agent"
)

// Target names a Kubernetes object.
type Target struct {
	schema.GroupVersionKind
	Namespace, Name string
	// UID and ResourceVersion are of the live object; empty for Create.
	UID, ResourceVersion string
}

// String is "Kind namespace/name".
func (t Target) String() string {
	if t.Namespace == "" {
		return t.Kind + " " + t.Name
	}
	return t.Kind + " " + t.Namespace + "/" + t.Name
}

// Operation is one step.
type Operation struct {
	Phase  Phase
	Action Action
	// Target is set for actions on Kubernetes objects.
	Target Target
	// Object is set for Create and Update.
	Object *unstructured.Unstructured
	// MergePatch is set for Patch.
	MergePatch []byte
	// Entry is set for the actions on entries (for DeleteEntry the live one).
	Entry *snapshot.Entry
	// AgentID is set for DeleteAgent: a whole SPIFFE ID.
	AgentID string
	// Proved is true when the operation follows from a proved-bad verdict: no rail and no
	// brake ever holds it back.
	Proved bool
	// Domain says what rests on the operation and on what it rests.
	Domain Domain
	// Reason says why, in a person's words.
	Reason string
}

func (o Operation) subject() string {
	switch {
	case o.Entry != nil:
		return o.Entry.ID + " " + o.Entry.SPIFFEID
	case o.AgentID != "":
		return o.AgentID
	}
	return o.Target.String()
}

// String is one line for people.
func (o Operation) String() string {
	line := fmt.Sprintf("%-12s %-12s %s", o.Phase, o.Action, o.subject())
	if o.Action == Patch {
		line += " " + string(o.MergePatch)
	}
	return line + "  # " + o.Reason
}

// Plan is what to do, in order.
type Plan struct {
	Operations []Operation
	// Withheld says what was left out on purpose, and why.
	Withheld []string
	// Waiting are the operations that were left out on purpose, in no particular order.
	Waiting []Operation
	// Missing are parts that could not be planned, each with the reason.
	Missing map[Part]string
	// Again is true when something has to be closed before its new state may open: apply
	// this plan, read again, and the next plan opens.
	Again bool
}

// Empty reports whether there is nothing to do.
func (p Plan) Empty() bool { return len(p.Operations) == 0 }

// Closing are the operations to apply first, each even when another fails.
func (p Plan) Closing() []Operation { return p.where(true) }

// Opening are the operations to apply after, in order, each unless it rests on what is missing.
func (p Plan) Opening() []Operation { return p.where(false) }

func (p Plan) where(closing bool) []Operation {
	return slices.DeleteFunc(slices.Clone(p.Operations), func(o Operation) bool { return o.Phase.Closing() != closing })
}

// String is the plan for people, one operation a line.
func (p Plan) String() string {
	if p.Empty() && len(p.Withheld) == 0 {
		return "nothing to do\n"
	}
	var b strings.Builder
	for _, o := range p.Operations {
		b.WriteString(o.String() + "\n")
	}
	for _, w := range p.Withheld {
		b.WriteString("withheld: " + w + "\n")
	}
	return b.String()
}
