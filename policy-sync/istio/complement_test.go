package istio

import (
	"slices"
	"strconv"
	"testing"

	securityapi "istio.io/api/security/v1beta1"
	"pgregory.net/rapid"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/desired"
)

func has[T comparable](list []T, v T) bool { return len(list) == 0 || slices.Contains(list, v) }

func lacks[T comparable](list []T, v T) bool { return len(list) == 0 || !slices.Contains(list, v) }

func permits(flows []desired.Flow, port int32, method, path string) bool {
	return slices.ContainsFunc(flows, func(f desired.Flow) bool {
		return has(f.Ports, port) && (len(f.HTTP) == 0 || slices.ContainsFunc(f.HTTP, func(h v1alpha1.HTTPRule) bool {
			return has(h.Methods, method) && has(h.Paths, path)
		}))
	})
}

func forbids(rules []*securityapi.Operation, port int32, method, path string) bool {
	return slices.ContainsFunc(rules, func(o *securityapi.Operation) bool {
		return lacks(o.NotPorts, strconv.Itoa(int(port))) && lacks(o.NotMethods, method) && lacks(o.NotPaths, path)
	})
}

var (
	somePorts   = []int32{1, 2, 3}
	someMethods = []string{"GET", "POST", "PUT"}
	somePaths   = []string{"/a", "/b", "/c"}
)

func some[T any](t *rapid.T, of []T, label string) []T {
	var out []T
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(of)-1), 0, 2, rapid.ID[int]).Draw(t, label) {
		out = append(out, of[i])
	}
	return out
}

// What is forbidden is exactly what is not permitted.
func TestThreat32_WhatAPolicyDoesNotPermitIsForbidden(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var flows []desired.Flow
		for range rapid.IntRange(1, 4).Draw(t, "flows") {
			f := desired.Flow{Ports: some(t, somePorts, "ports")}
			for range rapid.IntRange(0, 3).Draw(t, "rules") {
				f.HTTP = append(f.HTTP, v1alpha1.HTTPRule{Methods: some(t, someMethods, "methods"), Paths: some(t, somePaths, "paths")})
			}
			flows = append(flows, f)
		}
		rules := forbidden(permitted(flows))
		for _, o := range rules {
			if len(o.NotPorts)+len(o.NotMethods)+len(o.NotPaths) == 0 {
				t.Fatalf("an operation that matches everything: %v", rules)
			}
		}
		for _, port := range append(somePorts, 9) {
			for _, method := range append(someMethods, "HEAD") {
				for _, path := range append(somePaths, "/d") {
					if p, f := permits(flows, port, method, path), forbids(rules, port, method, path); p == f {
						t.Fatalf("%d %s %s: permitted %t, forbidden %t by %v", port, method, path, p, f, rules)
					}
				}
			}
		}
	})
}

// With more operations than one rule can tell apart, what no operation names at all is still forbidden, and nothing that one permits.
func TestManyOperationsForbidWhatNoneNames(t *testing.T) {
	var flow desired.Flow
	for i := range 40 {
		n := strconv.Itoa(i)
		flow.HTTP = append(flow.HTTP, v1alpha1.HTTPRule{Methods: []string{"M" + n}, Paths: []string{"/" + n}})
	}
	rules := forbidden(permitted([]desired.Flow{flow}))
	if len(rules) == 0 || len(rules) > maxForbidden {
		t.Fatalf("%d operations", len(rules))
	}
	for i := range 40 {
		if n := strconv.Itoa(i); forbids(rules, 1, "M"+n, "/"+n) {
			t.Errorf("M%s /%s is permitted and forbidden", n, n)
		}
	}
	if !forbids(rules, 1, "DELETE", "/1") || !forbids(rules, 1, "M1", "/else") {
		t.Errorf("what nothing names is not forbidden: %v", rules)
	}
}
