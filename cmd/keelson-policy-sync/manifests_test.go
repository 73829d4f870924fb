package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// TestManifestsMeanWhatTheChartMeans: a flag left out is the chart's value left out.
func TestManifestsMeanWhatTheChartMeans(t *testing.T) {
	content, err := os.ReadFile("../../charts/keelson/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values struct {
		PolicySync struct {
			ServiceAccountName string `yaml:"serviceAccountName"`
			Config             struct{ Taint bool }
		} `yaml:"policySync"`
		PullSecrets struct {
			PolicySync bool `yaml:"policySync"`
			Namespaces []string
		} `yaml:"pullSecrets"`
		SPIRE struct {
			Servers []struct {
				Namespace      string
				ServiceAccount string `yaml:"serviceAccount"`
			}
		} `yaml:"spire"`
		Guards struct {
			Affinity             bool
			AdminGroups          []string `yaml:"adminGroups"`
			KubeletGroups        []string `yaml:"kubeletGroups"`
			CalicoAPIServerUsers []string `yaml:"calicoAPIServerUsers"`
			CalicoNodeUsers      []string `yaml:"calicoNodeUsers"`
		}
	}
	if err := yaml.Unmarshal(content, &values); err != nil {
		t.Fatal(err)
	}
	var servers []string
	for _, s := range values.SPIRE.Servers {
		servers = append(servers, "system:serviceaccount:"+s.Namespace+":"+s.ServiceAccount)
	}
	list := func(of []string) string { return "[" + strings.Join(of, ",") + "]" }
	want := map[string]string{
		"namespace": "keelson-system", "service-account": values.PolicySync.ServiceAccountName, "spire-server": list(servers),
		"admin-group": list(values.Guards.AdminGroups), "kubelet-group": list(values.Guards.KubeletGroups),
		"calico-apiserver": list(values.Guards.CalicoAPIServerUsers), "calico-node": list(values.Guards.CalicoNodeUsers),
		"taint": fmt.Sprint(values.PolicySync.Config.Taint), "affinity": fmt.Sprint(values.Guards.Affinity),
		"pull-secrets": fmt.Sprint(values.PullSecrets.PolicySync), "pull-secret-namespace": list(values.PullSecrets.Namespaces),
	}
	got := map[string]string{}
	flags := manifestsCommand().Flags()
	for name := range want {
		if f := flags.Lookup(name); f != nil {
			got[name] = f.DefValue
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-chart +flags):\n%s", diff)
	}
}
