package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/cluster/factory"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/tampering"
	"github.com/keelson-project/keelson/test/e2e/wrongboot"
)

// whole is the demo on a whole cluster: what an operator would show to somebody who answers for its security. It plays on the
// stage of the end-to-end scenarios, and two of those are its second half.
type whole struct {
	out    io.Writer
	report *Report
	stage  *stage.Stage
}

func (w *whole) steps() []step {
	return []step{
		{"cluster", "three nodes, Calico and Istio enforcing, Keelson installed with Helm", w.start},
		{"a", "which machines, and which proof", w.showMachines},
		{"b", "which workloads, and who may talk to whom", w.showTraffic},
		{"c", "a machine with another kernel command line joins", w.scene("wrongboot", wrongboot.Proves, wrongboot.Play)},
		{"d", "a machine that serves traffic is tampered with", w.scene("tampering", tampering.Proves, tampering.Play(1))},
	}
}

func (w *whole) run(ctx context.Context) (err error) {
	defer func() {
		if w.stage != nil {
			say(w.out, "\ncleaning up …")
			err = errors.Join(err, w.stage.Close())
		}
	}()
	return w.report.play(ctx, w.out, w.steps())
}

func (w *whole) start(ctx context.Context, s *Step) error {
	machines := append(stage.Machines(), stage.Machine{Machine: factory.Machine{Name: wrongboot.Node, Country: "DE", Boot: "cmdline"}, Later: true})
	var err error
	if w.stage, err = stage.Start(ctx, stage.Options{Log: w.out, Machines: machines}); err != nil {
		return err
	}
	w.report.TPM = w.stage.Machines["fra-1"].TPM.Kind
	s.show(stage.Policies)
	if err := w.stage.Cast(ctx); err != nil {
		return err
	}
	s.expect(true, "cluster", "%d nodes with a TPM each (%s); containerd, kubelet, Felix; SPIRE, policy-sync and istiod as pods", len(w.stage.Nodes), w.report.TPM)
	return nil
}

func (w *whole) showMachines(ctx context.Context, s *Step) error {
	var trusts v1alpha1.NodeTrustList
	if err := w.stage.Client.List(ctx, &trusts); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	say(s.out, "    %-8s %-10s %-10s %-8s %-18s %s", "NODE", "VERDICT", "BOOTED AS", "STANDS", "TPM (EK)", "PROVED")
	for _, t := range trusts.Items {
		say(s.out, "    %-8s %-10s %-10s %-8s %-18.16s %s ago", t.Name, t.Spec.Verdict, t.Spec.Reference, t.Spec.Tags["country"], t.Spec.EKHash,
			time.Since(t.Spec.AttestedAt.Time).Round(time.Second))
	}
	for _, m := range stage.Machines() {
		var t v1alpha1.NodeTrust
		if err := w.stage.Client.Get(ctx, client.ObjectKey{Name: m.Name}, &t); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		ok := t.Spec.Verdict == v1alpha1.VerdictTrusted && t.Spec.Reference == factory.Reference && strings.EqualFold(t.Spec.Tags["country"], m.Country)
		s.expect(ok, m.Name, "%s, boot matches reference set %s, asset tag says %s", t.Spec.Verdict, t.Spec.Reference, t.Spec.Tags["country"])
	}
	return nil
}

// call is a way from one workload to another, and whether it should be open.
type call struct {
	from, to stage.Pod
	method   string // HTTP where it is set, else TCP
	path     string
	open     bool
	why      string
}

func calls() []call {
	return []call{
		{stage.Frontend, stage.API, "POST", "/charge", true, "payments' policy names shop's frontend, POST /charge"},
		{stage.Frontend, stage.API, "GET", "/charge", false, "another method"},
		{stage.Frontend, stage.API, "POST", "/refund", false, "another path"},
		{stage.Batch, stage.API, "POST", "/charge", false, "attested, but not named"},
		{stage.Mirror, stage.Ledger, "", "", true, "bank's policy names the mirror"},
		{stage.Teller, stage.Ledger, "", "", true, "bank's policy names the teller"},
		{stage.Teller, stage.Mirror, "", "", false, "attested, but not named"},
		{stage.Batch, stage.Ledger, "", "", false, "another namespace"},
		{stage.Passer, stage.Ledger, "", "", false, "not attested: its namespace is not enrolled"},
		{stage.Passer, stage.API, "POST", "/charge", false, "not attested, and in plain text"},
	}
}

func (w *whole) showTraffic(ctx context.Context, s *Step) error {
	for _, p := range []stage.Pod{stage.API, stage.Frontend, stage.Batch, stage.Ledger, stage.Mirror, stage.Teller} {
		if err := w.showIdentity(ctx, s, p); err != nil {
			return err
		}
	}
	for _, c := range calls() {
		if err := w.call(ctx, s, c); err != nil {
			return err
		}
	}
	return nil
}

func (w *whole) showIdentity(ctx context.Context, s *Step, p stage.Pod) error {
	identity := Identity{Pod: p.String(), Node: p.Node, Expected: true}
	err := w.stage.Until(ctx, 30*time.Second, p.String()+" has an identity", func(ctx context.Context) error {
		svid, err := w.stage.SVID(ctx, p)
		identity.SPIFFEID, identity.Error = svid.SPIFFEID, svid.Error
		if err == nil && !svid.OK {
			err = errors.New(svid.Error)
		}
		return err
	})
	w.report.Identities = append(w.report.Identities, identity)
	s.expect(err == nil && identity.SPIFFEID == p.ID(), p.String()+" on "+p.Node, "%s%s", identity.SPIFFEID, identity.Error)
	return ctx.Err()
}

func (w *whole) call(ctx context.Context, s *Step, c call) error {
	cell := Cell{From: c.from.String(), To: strings.TrimSpace(c.to.String() + " " + c.method + " " + c.path), Expected: c.open}
	check := func(ctx context.Context) error {
		try, err := w.stage.Dial(ctx, c.from, c.to.Account+"."+c.to.Namespace+fmt.Sprintf(":%d", stage.TCPPort))
		if c.method != "" {
			try, err = w.stage.Get(ctx, c.from, c.method, c.to.URL(c.path))
		}
		cell.Reached, cell.Error = try.OK, try.Error
		if err == nil && cell.Reached != c.open {
			err = fmt.Errorf("reached: %t", cell.Reached)
		}
		return err
	}
	// What is to be open may take a moment until every node has it; what is to be shut is shut from the start.
	limit := time.Minute // a proxy's first configuration may take half of that on two busy cores
	if !c.open {
		limit = 0
	}
	err := check(ctx)
	if err != nil && limit > 0 {
		err = w.stage.Until(ctx, limit, cell.To, check)
	}
	w.report.Matrix = append(w.report.Matrix, cell)
	result := map[bool]string{true: "reaches", false: "is kept from"}[cell.Reached]
	s.expect(err == nil, fmt.Sprintf("%s %s %s", cell.From, result, cell.To), "%s", c.why)
	return ctx.Err()
}

// scene plays a scenario and takes its record over.
func (w *whole) scene(name, proves string, play func(context.Context, *stage.Stage, *script.Script) error) func(context.Context, *Step) error {
	return func(ctx context.Context, s *Step) error {
		record := script.New(s.out, name, proves)
		err := play(ctx, w.stage, record)
		for _, e := range record.Events {
			if e.Expected {
				s.Checks = append(s.Checks, Check{Name: e.What, OK: e.OK, Detail: e.Detail})
			} else {
				w.report.Timeline = append(w.report.Timeline, Moment{Event: name + ": " + e.What, Seconds: e.Seconds})
			}
		}
		return err
	}
}
