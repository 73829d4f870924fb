package verdict_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/keelson-project/keelson/nodeattestor/verdict"
)

// flaky is an API that takes every second result, and remembers the newest it took of each node.
type flaky struct {
	mu    sync.Mutex
	tries int
	took  map[string]time.Time
}

func (f *flaky) Write(_ context.Context, r verdict.Result, _ time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tries++; f.tries%2 == 0 {
		return errors.New("connection refused")
	}
	if r.ReceivedAt.After(f.took[r.Node]) {
		f.took[r.Node] = r.ReceivedAt
	}
	return nil
}

func (f *flaky) has(node string, at time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.took[node].Before(at)
}

// Whatever was submitted by many at once, while other results are written and queues succeed each other, was
// written or is in the file when the server ends.
func TestThreat25_WhatManySubmitAtOnceIsWrittenOrInTheFile(t *testing.T) {
	const nodes, rounds = 24, 12
	path := filepath.Join(t.TempDir(), "pending.json")
	api := &flaky{took: map[string]time.Time{}}
	q, err := verdict.StartQueue(api, path, hclog.NewNullLogger(), clock)
	if err != nil {
		t.Fatal(err)
	}
	for round := range rounds {
		at := start.Add(time.Duration(round) * time.Millisecond)
		var all sync.WaitGroup
		for n := range nodes {
			all.Go(func() {
				r := result((n+round)%3 > 0, at)
				r.Node = fmt.Sprintf("node-%02d", n)
				if err := q.Submit(r); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if round%2 > 0 { // a new configuration
			if q, err = q.Succeed(api, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		q.Close() // the server ends
		kept := inFile(t, path)
		for n := range nodes {
			node := fmt.Sprintf("node-%02d", n)
			if !api.has(node, at) && !kept[node].ReceivedAt.Equal(at) {
				t.Fatalf("round %d: the result of %s was neither written nor kept", round, node)
			}
		}
		if q, err = verdict.StartQueue(api, path, hclog.NewNullLogger(), clock); err != nil {
			t.Fatal(err)
		}
	}
	q.Close()
}

func inFile(t *testing.T, path string) map[string]verdict.Result {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var kept map[string]verdict.Result
	if err := json.Unmarshal(data, &kept); err != nil {
		t.Fatal(err)
	}
	return kept
}
