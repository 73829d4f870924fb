// Package image is a scenario: images that the release key has not signed.
package image

import (
	"context"
	"time"

	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
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
		if err := s.ShutOut(ctx, t, p); err != nil {
			return err
		}
	}
	if err := atL7(ctx, s, t, pods[3]); err != nil {
		return err
	}
	return s.Delete(ctx, pods...)
}

func cast(tag string, changed node.Pushed) []stage.Pod {
	return []stage.Pod{
		{Namespace: "bank", Name: "unsigned", Account: "teller", Node: "fra-2", Repository: stage.Unsigned},
		{Namespace: "bank", Name: "retagged", Account: "teller", Node: "fra-2", Reference: tag},
		{Namespace: "bank", Name: "changed", Account: "teller", Node: "fra-2", Reference: changed.Reference()},
		{Namespace: "shop", Name: "unsigned-mesh", Account: "frontend", Node: "par-1", Repository: stage.Unsigned, Mesh: true},
	}
}

// atL7: the request goes out by way of the pod's own proxy, whose image is signed; but the pod as a whole is not what policy asks.
func atL7(ctx context.Context, s *stage.Stage, t *script.Script, p stage.Pod) error {
	try, err := s.Get(ctx, p, "POST", stage.API.URL("/charge"))
	if err != nil {
		return err
	}
	t.Expect(!try.OK, p.String()+" is not served by the API, though its proxy's image is signed", "%s", try.Error)
	return nil
}
