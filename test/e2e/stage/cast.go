package stage

import (
	"context"
	"time"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// The cast: two teams in the mesh, one without, one that is not enrolled.
var (
	API      = Pod{Namespace: "payments", Name: "api-fra-1", Account: "api", Node: "fra-1", Mesh: true}
	Frontend = Pod{Namespace: "shop", Name: "frontend-par-1", Account: "frontend", Node: "par-1", Mesh: true}
	Batch    = Pod{Namespace: "shop", Name: "batch-fra-2", Account: "batch", Node: "fra-2", Mesh: true}
	Ledger   = Pod{Namespace: "bank", Name: "ledger-fra-1", Account: "ledger", Node: "fra-1"}
	Mirror   = Pod{Namespace: "bank", Name: "mirror-par-1", Account: "mirror", Node: "par-1"}
	Teller   = Pod{Namespace: "bank", Name: "teller-fra-2", Account: "teller", Node: "fra-2"}
	Passer   = Pod{Namespace: "street", Name: "passer-fra-2", Account: "passer", Node: "fra-2"}
)

// Teams are the cast's namespaces. PodSecurity is off in one of them: it is Keelson that is to refuse there what asks for more rights.
func Teams() []Team {
	return []Team{
		{Namespace: "payments", Mode: v1alpha1.ModeEnforce, Accounts: []string{"api"}, Mesh: true},
		{Namespace: "shop", Mode: v1alpha1.ModeEnforce, Accounts: []string{"frontend", "batch"}, Mesh: true},
		{Namespace: "bank", Mode: v1alpha1.ModeEnforce, Accounts: []string{"ledger", "mirror", "teller"}, PodSecurity: "privileged"},
		{Namespace: "street", Accounts: []string{"passer"}},
	}
}

// Policies are what the teams write.
const Policies = `
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: api, namespace: payments}
spec:
  workloads: {serviceAccount: api}
  require:
    node: {references: [prod], tags: {country: [DE]}}
    image: {verifiedBy: [release-key]}
    runtime: restricted
  ingress:
  - from: [{namespace: shop, serviceAccount: frontend}]
    ports: [8080]
    http: [{methods: [POST], paths: [/charge]}]
---
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: frontend, namespace: shop}
spec:
  workloads: {serviceAccount: frontend}
  require: {node: {references: [prod]}, image: {verifiedBy: [release-key]}, runtime: restricted}
---
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: batch, namespace: shop}
spec:
  workloads: {serviceAccount: batch}
  require: {node: {references: [prod]}, image: {verifiedBy: [release-key]}, runtime: restricted}
---
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: ledger, namespace: bank}
spec:
  workloads: {serviceAccount: ledger}
  require: {node: {references: [prod]}, image: {verifiedBy: [release-key]}, runtime: restricted}
  ingress: [{from: [{serviceAccount: mirror}, {serviceAccount: teller}], ports: [9000]}]
---
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: mirror, namespace: bank}
spec:
  workloads: {serviceAccount: mirror}
  require: {node: {references: [prod]}, image: {verifiedBy: [release-key]}, runtime: restricted}
  ingress: [{from: [{serviceAccount: ledger}], ports: [9000]}]
---
apiVersion: trust.keelson.io/v1alpha1
kind: TrustPolicy
metadata: {name: teller, namespace: bank}
spec:
  workloads: {serviceAccount: teller}
  require: {node: {references: [prod]}, image: {verifiedBy: [release-key]}, runtime: restricted}
`

// Cast brings the cast onto the stage and waits until everybody who should be attested is.
func (s *Stage) Cast(ctx context.Context) error {
	begun := time.Now()
	for _, t := range Teams() {
		if err := s.CreateTeam(ctx, t); err != nil {
			return err
		}
	}
	if err := s.Cluster.Apply(ctx, []byte(Policies)); err != nil {
		return err
	}
	attested := []Pod{API, Frontend, Batch, Ledger, Mirror, Teller}
	if err := s.CreateReady(ctx, append(attested, Passer)...); err != nil {
		return err
	}
	if err := s.Attested(ctx, attested...); err != nil {
		return err
	}
	s.say("%d workloads run and are attested after %.1f s", len(attested), time.Since(begun).Seconds())
	return nil
}
