// Package image is a scenario: images that the release key has not signed.
package image

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// Proves is what the scenario shows.
const Proves = "an image that nobody signed, one under the tag of a signed one, and one changed by a byte: no identity, no trust label, shut out at L4 and L7"

// Play plays it.
func Play(ctx context.Context, s *stage.Stage, t *script.Script) error {
	retagged, err := s.PushChanged(ctx, "team/retagged", map[string][]byte{"/retagged": []byte("another release\n")})
	if err != nil {
		return err
	}
	// The attacker's image under the signed image's own name and tag.
	tag, err := s.Registry.Retag(ctx, retagged, stage.Workload)
	if err != nil {
		return err
	}
	changed, err := s.PushOneByteOff(ctx, "team/changed")
	if err != nil {
		return err
	}
	pods := cast(tag, changed)
	for _, p := range pods {
		if err := s.Create(ctx, p); err != nil {
			return err
		}
	}
	for _, p := range pods {
		if err := s.PodRunning(ctx, p, time.Minute); err != nil {
			return err
		}
		t.Say("%s runs", p)
	}
	time.Sleep(3 * time.Second) // were it to be labelled by mistake, policy-sync would have done it by now
	for _, p := range pods {
		twin := &stage.Teller
		if p.Mesh {
			twin = &stage.Frontend
		}
		if err := s.ShutOut(ctx, t, p, stage.Controls{Twin: twin}); err != nil {
			return err
		}
	}
	if err := atL7(ctx, s, t, pods[0], pods[3]); err != nil {
		return err
	}
	return s.Delete(ctx, pods...)
}

func cast(tag string, changed node.Pushed) []stage.Pod {
	return []stage.Pod{
		{Namespace: "bank", Name: "unsigned", Account: "teller", Node: "fra-2", Repository: stage.Unsigned},
		{Namespace: "bank", Name: "retagged", Account: "teller", Node: "fra-2", Reference: tag},
		{Namespace: "bank", Name: "changed", Account: "teller", Node: "fra-2", Reference: changed.Reference()},
		{Namespace: "shop", Name: "unsigned-mesh", Account: "frontend", Node: "par-1", Repository: stage.Unsigned, Mesh: true, Labels: map[string]string{"app": "unsigned-mesh"}},
	}
}

// atL7: Calico closes before Istio is asked, so it is taken out of the way between the teller's account and the API's: what Envoy does
// is then seen by itself. One without an identity cannot even shake hands; one with another's is told that it may not.
func atL7(ctx context.Context, s *stage.Stage, t *script.Script, unsigned, beside stage.Pod) error {
	for _, c := range []struct{ method, path string }{{"GET", "/charge"}, {"POST", "/other"}} {
		try, err := s.Answer(ctx, func(ctx context.Context) (said.Try, error) {
			return s.Get(ctx, stage.Frontend, c.method, stage.API.URL(c.path))
		})
		if err != nil {
			return err
		}
		t.Expect(stage.DeniedByProxy(try), fmt.Sprintf("Envoy denies %s %s to %s, for whom L4 is open", c.method, c.path, stage.Frontend), "%s", try.Error)
	}
	return errors.Join(alone(ctx, s, t, unsigned), withProxy(ctx, s, t, beside))
}

// alone: the pod has nothing to show.
func alone(ctx context.Context, s *stage.Stage, t *script.Script, unsigned stage.Pod) (err error) {
	opened, err := s.OpenL4(ctx, stage.Teller, stage.API)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close(ctx)) }()
	t.Say("an administrator's tier before Keelson's lets packets of the teller's account through to the API")
	address, err := s.Address(ctx, stage.API, stage.HTTPPort)
	if err != nil {
		return err
	}
	try, err := s.Answer(ctx, func(ctx context.Context) (said.Try, error) {
		return s.Get(ctx, unsigned, "POST", "http://"+address+"/charge")
	})
	if err != nil {
		return err
	}
	t.Expect(try.Kind == said.Ended, unsigned.String()+", which has no identity, is refused by Envoy: mutual TLS is strict", "%s: %s", try.Kind, try.Error)
	if try, err = s.Answer(ctx, func(ctx context.Context) (said.Try, error) {
		return s.GetAs(ctx, stage.Teller, "svid", "POST", "https://"+address+"/charge")
	}); err != nil {
		return err
	}
	t.Expect(stage.DeniedByProxy(try), stage.Teller.String()+", from the signed image, shows its identity and is denied by Envoy: no policy names it", "%s", try.Error)
	return nil
}

// withProxy: SPIRE's agent attests the container that asks, which is the proxy, and its image is signed. So the proxy has the identity that the
// pod as a whole must not use, and the callee's proxy cannot tell: it is Calico alone that shuts such a pod out.
func withProxy(ctx context.Context, s *stage.Stage, t *script.Script, beside stage.Pod) (err error) {
	opened, err := s.OpenL4(ctx, beside, stage.API)
	if err != nil {
		return err
	}
	// Its proxy keeps its connection, which ends with the pod.
	defer func() { err = errors.Join(err, opened.Remove(ctx), s.Delete(ctx, beside)) }()
	var try said.Try
	served := s.Until(ctx, 30*time.Second, beside.String()+" is served", func(ctx context.Context) (err error) {
		if try, err = s.Get(ctx, beside, "POST", stage.API.URL("/charge")); err == nil && !try.OK {
			err = errors.New(try.Error)
		}
		return err
	})
	t.Expect(served == nil, "KNOWN LIMIT: were it not for Calico, "+beside.String()+" would be served by way of its signed proxy, whose identity it shares", "%v %v", try.Answer, served)
	return nil
}
