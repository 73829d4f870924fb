// Package privileged is a scenario: containers with more rights than the policy lets them have.
package privileged

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
)

// Proves is what the scenario shows.
const Proves = "a privileged container, one that shares the node's process IDs and one that mounts the container runtime's socket, where the policy says `runtime: restricted`: no identity, no trust label, no way in"

var pods = []stage.Pod{
	{Namespace: "bank", Name: "privileged", Account: "teller", Node: "fra-2", Privileged: true},
	{Namespace: "bank", Name: "host-pid", Account: "teller", Node: "fra-2", HostPID: true},
	{Namespace: "bank", Name: "host-path", Account: "teller", Node: "fra-2", HostPath: "/run/containerd"},
	{Namespace: "bank", Name: "sub-path", Account: "teller", Node: "fra-2", HostPath: "/run", SubPath: "containerd"},
}

// whys are words of the reason for each.
var whys = map[string]string{"privileged": "level restricted forbids: privileged", "host-pid": "hostPID=true", "host-path": "is /run/containerd of the node", "sub-path": "is /run of the node"}

// Play plays it.
func Play(ctx context.Context, s *stage.Stage, t *script.Script) error {
	for _, p := range pods {
		if err := s.Create(ctx, p); err != nil {
			return err
		}
	}
	for _, p := range pods {
		if err := s.PodRunning(ctx, p, time.Minute); err != nil {
			return err
		}
		if err := s.ShutOut(ctx, t, p, stage.Controls{Twin: &stage.Teller}); err != nil {
			return err
		}
		if err := s.Until(ctx, 30*time.Second, "the policy's status names "+p.String(), func(ctx context.Context) error {
			if why := s.Why(ctx, p); !strings.Contains(why, whys[p.Name]) {
				return fmt.Errorf("it says %q, which does not name %q", why, whys[p.Name])
			}
			return nil
		}); err != nil {
			return err
		}
		t.Expect(true, "the policy's status says why", "%s", s.Why(ctx, p))
	}
	return s.Delete(ctx, pods...)
}
