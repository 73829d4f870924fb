package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/plan"
)

func addPlan(root *cobra.Command) {
	o := &observer{}
	var format string
	c := &cobra.Command{
		Use:   "plan",
		Short: "Show what policy-sync would do now, in order, and why; changes nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			seen, err := o.observe(cmd.Context())
			if err != nil {
				return err
			}
			p := seen.result.Plan
			if !seen.verified {
				p = withoutPods(p)
			}
			if err := printPlan(cmd.OutOrStdout(), format, p, append(seen.notes, seen.result.Graph.Reports...)); err != nil || seen.verified {
				return err
			}
			return errUntold("what becomes of pods' labels and addresses")
		},
	}
	o.flags(c)
	outputFlag(c, &format)
	root.AddCommand(c)
}

// errUntold is what cannot be said without the verifiers of images.
func errUntold(what string) error {
	return fmt.Errorf("%s cannot be told without --config, which names the verifiers of images", what)
}

// withoutPods leaves out what follows from what is known of pods: their labels, and which addresses are revoked.
func withoutPods(p plan.Plan) plan.Plan {
	about := func(o plan.Operation) bool {
		return o.Target.Kind == "Pod" || o.Target.Name == v1alpha1.RevokedSet || strings.HasPrefix(o.Target.Name, v1alpha1.RevokedSet+".")
	}
	p.Operations = slices.DeleteFunc(slices.Clone(p.Operations), about)
	p.Waiting = slices.DeleteFunc(slices.Clone(p.Waiting), about)
	return p
}

// waits are what a plan has still to do and cannot do yet, each with why.
func waits(p plan.Plan) []string {
	var out []string
	for _, o := range p.Waiting {
		out = append(out, fmt.Sprintf("%s (withheld)", o))
	}
	var missing plan.Missing
	for part, why := range p.Missing {
		missing.AddPart(part, errors.New(why))
	}
	for _, o := range p.Opening() {
		if why := missing.Holds(o); why != nil {
			out = append(out, fmt.Sprintf("%s (%v)", o, why))
		}
	}
	return out
}

func outputFlag(c *cobra.Command, format *string) {
	c.Flags().StringVarP(format, "output", "o", "text", "text or json")
}

// plannedOperation is one operation as JSON.
type plannedOperation struct {
	Phase   string          `json:"phase"`
	Action  plan.Action     `json:"action"`
	Subject string          `json:"subject"`
	Reason  string          `json:"reason"`
	Object  any             `json:"object,omitempty"`
	Patch   json.RawMessage `json:"patch,omitempty"`
}

type plannedOutput struct {
	Operations []plannedOperation `json:"operations"`
	Withheld   []string           `json:"withheld,omitempty"`
	Waiting    []string           `json:"waiting,omitempty"`
	Notes      []string           `json:"notes,omitempty"`
}

func printPlan(out io.Writer, format string, p plan.Plan, notes []string) error {
	switch format {
	case "json":
		j := plannedOutput{Operations: []plannedOperation{}, Withheld: p.Withheld, Waiting: waits(p), Notes: notes}
		for _, o := range p.Operations {
			j.Operations = append(j.Operations, planned(o))
		}
		return writeJSON(out, j)
	case "text":
		text := p.String()
		for _, w := range waits(p) {
			text += "waits: " + w + "\n"
		}
		for _, n := range notes {
			text += "note: " + n + "\n"
		}
		_, err := io.WriteString(out, text)
		return err
	default:
		return fmt.Errorf("output %q is neither text nor json", format)
	}
}

func planned(o plan.Operation) plannedOperation {
	j := plannedOperation{Phase: o.Phase.String(), Action: o.Action, Subject: o.Target.String(), Reason: o.Reason, Patch: o.MergePatch}
	switch {
	case o.Entry != nil:
		j.Subject, j.Object = o.Entry.ID, o.Entry
	case o.AgentID != "":
		j.Subject = o.AgentID
	case o.Object != nil:
		j.Object = o.Object.Object
	}
	return j
}

func writeJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
