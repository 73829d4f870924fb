package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

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
			_, r, notes, err := o.observe(cmd.Context())
			if err != nil {
				return err
			}
			return printPlan(cmd.OutOrStdout(), format, r.Plan, append(notes, r.Graph.Reports...))
		},
	}
	o.flags(c)
	outputFlag(c, &format)
	root.AddCommand(c)
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
	Notes      []string           `json:"notes,omitempty"`
}

func printPlan(out io.Writer, format string, p plan.Plan, notes []string) error {
	switch format {
	case "json":
		j := plannedOutput{Operations: []plannedOperation{}, Withheld: p.Withheld, Notes: notes}
		for _, o := range p.Operations {
			j.Operations = append(j.Operations, planned(o))
		}
		return writeJSON(out, j)
	case "text":
		text := p.String()
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
