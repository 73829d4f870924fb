package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/charts"
	"github.com/keelson-project/keelson/policy-sync/guard"
	"github.com/keelson-project/keelson/policy-sync/kube"
)

// manifests says what policy-sync needs in a cluster, for those who install without Helm.
type manifests struct {
	namespace, serviceAccount string
	guards                    guard.Params
	// pullSecrets adds the right to read Secrets, in pullSecretNamespaces or everywhere.
	pullSecrets          bool
	pullSecretNamespaces []string
}

func manifestsCommand() *cobra.Command {
	m := manifests{}
	c := &cobra.Command{
		Use:   "manifests",
		Short: "Print custom resource definitions, policy-sync's roles and admission guards as YAML for kubectl apply",
		Long: "Print what the API needs before policy-sync may run: custom resource definitions, policy-sync's own roles, admission guards. The namespace\n" +
			"has to exist. Pods, accounts, keelson-node and what SPIRE's plugins may do come with the chart (helm template --no-hooks renders all of it).",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return m.write(cmd.OutOrStdout()) },
	}
	f := c.Flags()
	f.StringVar(&m.namespace, "namespace", "keelson-system", "namespace that policy-sync runs in (it must exist)")
	f.StringVar(&m.serviceAccount, "service-account", "keelson-policy-sync", "service account that policy-sync runs as")
	f.StringSliceVar(&m.guards.SPIREServers, "spire-server", []string{"system:serviceaccount:spire-server:spire-server"}, "users that write NodeTrusts")
	f.StringSliceVar(&m.guards.Admins, "admin-group", []string{"system:masters"}, "groups that enrol namespaces and release TPMs")
	f.StringSliceVar(&m.guards.Kubelets, "kubelet-group", []string{"system:nodes"}, "groups that report the addresses and images of pods")
	f.StringSliceVar(&m.guards.CalicoAPIServers, "calico-apiserver", guard.CalicoAPIServers, "users as whom Calico's API server writes; name yours alone")
	f.StringSliceVar(&m.guards.CalicoNodes, "calico-node", guard.CalicoNodes, "users of Calico's programs on nodes")
	f.BoolVar(&m.guards.Taint, "taint", true, "guard the taint of untrusted nodes, and put it on new ones")
	f.BoolVar(&m.guards.Affinity, "affinity", true, "have pods of enforced namespaces placed on nodes that their TrustPolicies accept")
	f.BoolVar(&m.pullSecrets, "pull-secrets", false, "let policy-sync read Secrets and service accounts, for images.pullSecrets")
	f.StringSliceVar(&m.pullSecretNamespaces, "pull-secret-namespace", nil, "with --pull-secrets, only in these namespaces")
	return c
}

func (m manifests) write(out io.Writer) error {
	crds, err := charts.CRDs()
	if err != nil {
		return err
	}
	m.guards.PolicySync = fmt.Sprintf("system:serviceaccount:%s:%s", m.namespace, m.serviceAccount)
	guards, err := guard.Objects(m.guards)
	if err != nil {
		return err
	}
	documents, objects := crds, append([]runtime.Object{}, kube.RBAC(m.namespace, m.serviceAccount)...)
	if m.pullSecrets {
		objects = append(objects, kube.PullSecretRBAC(m.namespace, m.serviceAccount, m.pullSecretNamespaces)...)
	}
	for _, o := range append(objects, guards...) {
		document, err := yaml.Marshal(o)
		if err != nil {
			return fmt.Errorf("manifests: %w", err)
		}
		documents = append(documents, document)
	}
	for _, d := range documents {
		if _, err := fmt.Fprintf(out, "---\n%s\n", strings.TrimPrefix(strings.TrimSpace(string(d)), "---\n")); err != nil {
			return fmt.Errorf("manifests: %w", err)
		}
	}
	return nil
}
