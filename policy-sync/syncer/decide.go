package syncer

import (
	"github.com/keelson-project/keelson/policy-sync/plan"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/policy-sync/trustgraph"
)

// Decision is what a snapshot comes to: what it means, and what to do about it.
type Decision struct {
	Graph trustgraph.Graph
	Plan  plan.Plan
}

// Decide is the pure part of a pass: the same snapshot gives the same decision, in the loop and in the CLI.
func Decide(s snapshot.Snapshot) (Decision, error) {
	g, err := trustgraph.Build(s)
	if err != nil {
		return Decision{}, err
	}
	return Decision{Graph: g}, nil
}
