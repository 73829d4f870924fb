package stage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// ahead is what an administrator might write and should not: a tier that is asked before Keelson's. Calico lets through what it
// allows, so that Istio's proxies alone decide.
const ahead = `
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: ahead}
spec: {order: 10, defaultAction: Pass}
`

const aheadPolicies = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: ahead.egress}
spec:
  tier: ahead
  selector: %[1]s
  types: [Egress]
  egress:
  - {action: Allow, protocol: TCP, destination: {selector: %[2]s}}
  - {action: Pass}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: ahead.ingress}
spec:
  tier: ahead
  selector: %[2]s
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: TCP, source: {selector: %[1]s}}
  - {action: Pass}
`

func calicoSelector(p Pod) string {
	return fmt.Sprintf("projectcalico.org/namespace == '%s' && app == '%s'", p.Namespace, cmp.Or(p.Labels["app"], p.Account))
}

// Opened is Calico out of the way between pods.
type Opened struct {
	s        *Stage
	from, to Pod
	policies []byte
}

// OpenL4 takes Calico out of the way between the pods that have the same label "app" (their account's, if none is their own), and
// returns once it is.
func (s *Stage) OpenL4(ctx context.Context, from, to Pod) (*Opened, error) {
	o := &Opened{s, from, to, fmt.Appendf(nil, aheadPolicies, yamlText(calicoSelector(from)), yamlText(calicoSelector(to)))}
	if err := s.Cluster.Apply(ctx, []byte(ahead), o.policies); err != nil {
		return nil, errors.Join(err, o.Remove(ctx))
	}
	if err := s.untilL4(ctx, from, to, true); err != nil {
		return nil, errors.Join(err, o.Remove(ctx))
	}
	return o, nil
}

// Remove has Calico decide again about what is opened from now on. A connection between proxies that stands goes on.
func (o *Opened) Remove(ctx context.Context) error {
	return o.s.Cluster.Remove(ctx, o.policies, []byte(ahead)) // the tier goes once it is empty
}

// Close is Remove, and returns once it is seen to be shut.
func (o *Opened) Close(ctx context.Context) error {
	return errors.Join(o.Remove(ctx), o.s.untilL4(ctx, o.from, o.to, false))
}

func yamlText(s string) string { return `"` + s + `"` }

// untilL4 waits until packets pass, or do not. A pod's own proxy answers for itself where the other end does not, so from such a pod only
// an answer of the other end's counts.
func (s *Stage) untilL4(ctx context.Context, from, to Pod, open bool) error {
	address, err := s.Address(ctx, to, HTTPPort)
	if err != nil {
		return err
	}
	return s.Until(ctx, 30*time.Second, fmt.Sprintf("packets of %s pass to %s: %t", from, to, open), func(ctx context.Context) error {
		var try said.Try
		var err error
		if from.Mesh {
			try, err = s.Get(ctx, from, "POST", to.URL("/charge"))
		} else {
			try, err = s.GetAs(ctx, from, "svid", "GET", "https://"+address+"/")
		}
		passed := try.Kind != said.Timeout
		if from.Mesh {
			passed = try.OK || try.Status == http.StatusForbidden
		}
		if err == nil && passed != open {
			err = fmt.Errorf("%s: %s", try.Kind, try.Error)
		}
		return err
	})
}

// Answer tries until somebody answers, whatever the answer: a computer that is busy lets a try time out as a filter that drops does.
func (s *Stage) Answer(ctx context.Context, try func(context.Context) (said.Try, error)) (got said.Try, err error) {
	err = s.Until(ctx, 30*time.Second, "an answer", func(ctx context.Context) (err error) {
		if got, err = try(ctx); err == nil && got.Kind == said.Timeout {
			err = errors.New(got.Error)
		}
		return err
	})
	return got, err
}

// DeniedByProxy tells whether Envoy itself has said no, by its rules.
func DeniedByProxy(t said.Try) bool {
	return t.Status == http.StatusForbidden && strings.Contains(t.Error, "RBAC: access denied")
}
