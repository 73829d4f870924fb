// Package geofence is a scenario: a policy that wants its workload in one country.
package geofence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// Proves is what the scenario shows.
const Proves = "payments holds an identity, is labelled and is reachable in DE only; the scheduler places it nowhere else, and the same image and account on a trusted machine in FR is nobody"

var (
	// wishful wants to run in FR.
	wishful = stage.Pod{Namespace: "payments", Name: "api-wishful", Account: "api", Node: "par-1", Mesh: true}
	// abroad runs there, past the scheduler and a kubelet that asks.
	abroad = stage.Pod{Namespace: "payments", Name: "api-par-1", Account: "api", Node: "par-1", Force: true, Mesh: true, Labels: map[string]string{"place": "abroad"}}
)

// service leads to the pod abroad alone, ready or not: were it let in, callers would reach it here.
const service = `
apiVersion: v1
kind: Service
metadata: {name: api-abroad, namespace: payments}
spec:
  publishNotReadyAddresses: true
  selector: {place: abroad}
  ports: [{name: http, port: 8080}]
`

// Play plays it.
func Play(ctx context.Context, s *stage.Stage, t *script.Script) error {
	if err := s.Cluster.Apply(ctx, []byte(service)); err != nil {
		return err
	}
	if err := s.Create(ctx, wishful); err != nil {
		return err
	}
	why, err := s.Waits(ctx, wishful)
	if err != nil {
		return err
	}
	t.Expect(strings.Contains(why, "affinity"), "the scheduler does not place it abroad", "%s", why)
	if err := s.ForcePods(ctx, abroad); err != nil {
		return err
	}
	if err := s.PodRunning(ctx, abroad, time.Minute); err != nil {
		return err
	}
	t.Say("%s runs on par-1, whose asset tag, certified by its TPM, says country=FR", abroad)
	svid, err := s.SVID(ctx, abroad)
	if err != nil {
		return err
	}
	t.Expect(stage.RefusedByAgent(svid), "abroad it gets no identity: the agent refuses it", "%s%s: %s", svid.SPIFFEID, svid.Code, svid.Error)
	if svid, err = s.SVID(ctx, stage.Frontend); err != nil {
		return err
	}
	t.Expect(svid.OK, "control: "+stage.Frontend.String()+", whose policy names no country, has its identity on the same node", "%s%s", svid.SPIFFEID, svid.Error)
	if err := refused(ctx, s, t); err != nil {
		return err
	}
	if svid, err = s.SVID(ctx, stage.API); err != nil {
		return err
	}
	t.Expect(svid.OK && svid.SPIFFEID == stage.API.ID(), "at home it has its identity", "%s%s", svid.SPIFFEID, svid.Error)
	if err := reached(ctx, s, t); err != nil {
		return err
	}
	return s.Delete(ctx, abroad, wishful)
}

func refused(ctx context.Context, s *stage.Stage, t *script.Script) error {
	return s.Until(ctx, 30*time.Second, "the policy's status names the pod abroad", func(ctx context.Context) error {
		object, err := s.GetPod(ctx, abroad.Namespace, abroad.Name)
		if err != nil {
			return err
		}
		why := s.Why(ctx, abroad)
		if !strings.Contains(why, "country") {
			return fmt.Errorf("it says %q", why)
		}
		t.Expect(object.Labels[v1alpha1.PodAttestedLabel] == "", "abroad it has no trust label, and the policy's status says why", "%s", why)
		return nil
	})
}

// reached calls both by a Service each.
func reached(ctx context.Context, s *stage.Stage, t *script.Script) error {
	if err := s.Until(ctx, 20*time.Second, "a call of "+stage.API.String(), func(ctx context.Context) error {
		try, err := s.Get(ctx, stage.Frontend, "POST", stage.API.URL("/charge"))
		if err == nil && !try.OK {
			err = errors.New(try.Error)
		}
		if err == nil {
			t.Expect(try.Answer.Name == stage.API.Name, stage.Frontend.String()+" reaches it at home", "%s answers %s", try.Answer.Name, try.Answer.Caller)
		}
		return err
	}); err != nil {
		return err
	}
	try, err := s.Get(ctx, stage.Frontend, "POST", fmt.Sprintf("http://api-abroad.payments:%d/charge", stage.HTTPPort))
	if err != nil {
		return err
	}
	t.Expect(!try.OK && try.Kind != said.Unresolved, stage.Frontend.String()+" does not reach it abroad", "%s: %s", try.Kind, try.Error)
	return nil
}
