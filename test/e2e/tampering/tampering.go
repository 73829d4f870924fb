// Package tampering is a scenario: a node that serves traffic is tampered with.
package tampering

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// Proves is what the scenario shows.
const Proves = "a program that no reference set has is run on a node that serves traffic: identity, labels and network close by themselves, open connections are cut, and how long each takes"

// node is the machine that is tampered with; stage.API and stage.Ledger run there, stage.Mirror and stage.Frontend do not.
const node = "fra-1"

// intruder is what is run there: its kernel measures it.
const intruder = "/usr/local/bin/intruder"

// What is measured. The first is from the tampering, which has to wait for the next attestation, all others from the moment when
// the verdict could be read at the API.
const (
	toVerdict  = "tampering → verdict (half of agent_ttl at most, and the appraisal)"
	toRevoked  = "verdict → addresses in Calico's set of revoked ones"
	toLabel    = "verdict → node and pod labels gone, node tainted"
	toClosedIn = "verdict → Calico: nobody trusted is reached from there"
	toClosed   = "verdict → Calico: nobody trusted reaches it"
	toCutOut   = "verdict → open connection to it cut"
	toCutIn    = "verdict → open connection from it cut"
	toEnvoy    = "verdict → Envoy of a trusted pod denies its addresses"
	toIdentity = "verdict → its workloads' last identity has ended"
)

var measures = []string{toVerdict, toRevoked, toLabel, toClosed, toClosedIn, toCutOut, toCutIn, toEnvoy, toIdentity}

// Goals are upper bounds in milliseconds at p99, for a machine that does nothing else.
var goals = map[string]float64{toClosed: 500, toClosedIn: 500, toCutOut: 500, toCutIn: 500, toEnvoy: 1000}

// Play returns a scenario that tampers as many times as runs says; between two runs the machine is booted anew.
func Play(runs int) func(context.Context, *stage.Stage, *script.Script) error {
	return func(ctx context.Context, s *stage.Stage, t *script.Script) error {
		if err := host(ctx, s); err != nil {
			return err
		}
		for i := range runs {
			if err := once(ctx, s, t, i+1); err != nil {
				return fmt.Errorf("run %d: %w", i+1, err)
			}
			if err := heal(ctx, s, t); err != nil {
				return fmt.Errorf("run %d: %w", i+1, err)
			}
		}
		t.Table(measures)
		for _, what := range measures {
			if goal, ok := goals[what]; ok {
				t.Say("goal %.0f ms: %s: %s", goal, what, verdicts(goal, t.Measures[what]))
			}
		}
		return nil
	}
}

// verdicts says whether a goal is met by half of the runs and by nearly all. It fails nothing: that is for the bounds, which hold in
// every run.
func verdicts(goal float64, values []float64) string {
	if len(values) == 0 {
		return "not measured"
	}
	var all []string
	for _, q := range []struct {
		name  string
		share float64
	}{{"p50", 0.5}, {"p99", 0.99}} {
		v := script.Quantile(values, q.share)
		met := "met"
		if v > goal {
			met = "missed"
		}
		all = append(all, fmt.Sprintf("%s at %s (%.0f ms)", met, q.name, v))
	}
	return strings.Join(all, ", ")
}

// once tampers and watches what follows, from both sides.
func once(ctx context.Context, s *stage.Stage, t *script.Script, run int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the probes, whatever has happened
	w, err := watch(ctx, s)
	if err != nil {
		return err
	}
	defer w.stop()
	// Names that no earlier run has used in these pods.
	p := &probes{s: s, name: fmt.Sprintf("tampering-%d-", time.Now().UnixNano())}
	all, limited := errgroup.WithContext(ctx)
	if err := p.start(limited, all); err != nil {
		return err
	}
	t.Say("run %d: %s is run on %s; its kernel adds it to the IMA list and extends PCR 10", run, intruder, node)
	begun := time.Now()
	if err := s.Machines[node].RunFile(ctx, intruder, fmt.Appendf(nil, "#!/bin/sh\necho %d\n", run)); err != nil {
		return err
	}
	seen, err := w.wait(ctx, 40*time.Second)
	if err != nil {
		return err
	}
	if err := p.finish(limited, seen.verdict); err != nil {
		return err
	}
	if err := all.Wait(); err != nil {
		return err
	}
	t.Saw(seen.verdict, "verdict: untrusted: %s", seen.reason)
	within(t, toVerdict, seen.verdict, begun, 40*time.Second, "with the wait for the next attestation")
	for _, m := range []struct {
		what string
		at   time.Time
	}{{toRevoked, seen.revoked}, {toLabel, seen.unlabelled}} {
		t.Saw(m.at, "%s", m.what)
		within(t, m.what, m.at, seen.verdict, apiBound, "as the API tells")
	}
	p.judge(t, seen.verdict)
	return left(ctx, s, t, seen.verdict)
}

// heal boots the machine anew, as an operator would, and waits until all is as before.
func heal(ctx context.Context, s *stage.Stage, t *script.Script) error {
	m := s.Machines[node]
	if err := s.Factory.Reboot(ctx, m); err != nil {
		return err
	}
	// A machine that boots starts its pods anew.
	if err := s.RestartAgent(ctx, node); err != nil {
		return err
	}
	if err := s.UntilTrusted(ctx, node); err != nil {
		return err
	}
	if err := s.Attested(ctx, stage.API, stage.Ledger); err != nil {
		return err
	}
	if err := open(ctx, s); err != nil {
		return err
	}
	t.Say("%s was booted anew and is trusted again; its workloads are reached", node)
	return nil
}

// open waits until what is to be closed is open, at L4 and at L7.
func open(ctx context.Context, s *stage.Stage) error {
	ledger, err := s.Address(ctx, stage.Ledger, stage.TCPPort)
	if err != nil {
		return err
	}
	mirror, err := s.Address(ctx, stage.Mirror, stage.TCPPort)
	if err != nil {
		return err
	}
	return s.Until(ctx, time.Minute, "everything is open again", func(ctx context.Context) error {
		for from, address := range map[*stage.Pod]string{&stage.Mirror: ledger, &stage.Ledger: mirror} {
			try, err := s.Dial(ctx, *from, address)
			if err != nil {
				return err
			}
			if !try.OK {
				return fmt.Errorf("%s → %s: %s", from, address, try.Error)
			}
		}
		try, err := s.Get(ctx, stage.Frontend, "POST", stage.API.URL("/charge"))
		if err == nil && !try.OK {
			err = errors.New(try.Error)
		}
		if err != nil {
			return err
		}
		denied, err := s.Probe(ctx, stage.Frontend, denials(ledger, time.Millisecond, time.Second), stage.Listeners)
		if err == nil && denied[0].OK {
			err = fmt.Errorf("the proxy of %s still denies %s", stage.Frontend, ledger)
		}
		return err
	})
}
