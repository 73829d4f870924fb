// Package policyapi has the tests of what the Kubernetes API takes as a TrustPolicy, on a real kube-apiserver: that each slip is
// refused with a sentence, and that the schema and policy-sync refuse the same.
package policyapi
