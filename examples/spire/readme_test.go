// Package spire holds the README of the example to the files beside it and to the chart that it installs: what it tells people to
// run and to set is what the manifests need.
package spire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/keelson-project/keelson/charts/images"
	"github.com/keelson-project/keelson/test/parts"
)

var files = []string{"server.yaml", "agent.yaml", "csi.yaml"}

func read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// blocks are the code blocks of the README in some language, "" for commands.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	var out []string
	var block strings.Builder
	open := "" // the fence that the block began with
	for line := range strings.Lines(read(t, "README.md")) {
		switch text := strings.TrimSpace(line); {
		case open == "" && strings.HasPrefix(text, "```"):
			open = text
			block.Reset()
		case open != "" && text == "```":
			if open == "```"+language {
				out = append(out, block.String())
			}
			open = ""
		case open != "":
			block.WriteString(strings.TrimPrefix(line, "   "))
		}
	}
	return out
}

// commands are the README's commands, in their order, as words.
func commands(t *testing.T) [][]string {
	t.Helper()
	var out [][]string
	for _, block := range blocks(t, "") {
		for line := range strings.Lines(block) {
			out = append(out, strings.Fields(line))
		}
	}
	return out
}

// after are the words that follow an option, wherever it stands.
func after(words []string, options ...string) []string {
	var out []string
	for i, w := range words {
		for _, o := range options {
			if w == o && i+1 < len(words) {
				out = append(out, words[i+1])
			} else if value, ok := strings.CutPrefix(w, o+"="); ok {
				out = append(out, value)
			}
		}
	}
	return out
}

// values are what the README tells people to install the chart with.
func values(t *testing.T) map[string]any {
	t.Helper()
	found := blocks(t, "yaml")
	if len(found) != 1 {
		t.Fatalf("the README has %d blocks of values", len(found))
	}
	out := map[string]any{}
	if err := yaml.Unmarshal([]byte(found[0]), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func at(t *testing.T, object map[string]any, fields ...string) string {
	t.Helper()
	value, _, err := unstructured.NestedFieldNoCopy(object, fields...)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(value)
}

// objects are a file's objects.
func objects(t *testing.T, name string) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(read(t, name)), 4096); ; {
		o := &unstructured.Unstructured{}
		if err := decoder.Decode(&o.Object); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
}

// one is the only object of a kind and a name in the three files.
func one[T any](t *testing.T, kind, name string) T {
	t.Helper()
	var found []T
	for _, file := range files {
		for _, o := range objects(t, file) {
			if o.GetKind() == kind && o.GetName() == name {
				var typed T
				if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, &typed, true); err != nil {
					t.Fatal(err)
				}
				found = append(found, typed)
			}
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects are %s %s", len(found), kind, name)
	}
	return found[0]
}

func pods(t *testing.T) map[string]corev1.PodTemplateSpec {
	t.Helper()
	return map[string]corev1.PodTemplateSpec{
		"server.yaml": one[appsv1.StatefulSet](t, "StatefulSet", "spire-server").Spec.Template,
		"agent.yaml":  one[appsv1.DaemonSet](t, "DaemonSet", "spire-agent").Spec.Template,
		"csi.yaml":    one[appsv1.DaemonSet](t, "DaemonSet", "spiffe-csi-driver").Spec.Template,
	}
}

// setting is the text of a setting in SPIRE's configuration.
func setting(t *testing.T, conf, key string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^\s*` + key + `\s*=\s*\[?"([^"]+)"`).FindStringSubmatch(conf)
	if found == nil {
		t.Fatalf("no setting %s", key)
	}
	return found[1]
}

func TestStepsComeInAnOrderThatWorks(t *testing.T) {
	namespaces, applied := map[string]bool{}, map[string]bool{}
	for _, c := range commands(t) {
		if c[0] == "kubectl" && c[1] == "apply" {
			for _, file := range after(c, "-f") {
				for _, o := range objects(t, file) {
					if o.GetKind() == "Namespace" {
						namespaces[o.GetName()] = true
					} else if n := o.GetNamespace(); n != "" && !namespaces[n] {
						t.Errorf("%s has %s %s in namespace %s, which nothing has made", file, o.GetKind(), o.GetName(), n)
					}
				}
				applied[file] = true
			}
		}
		for _, n := range after(c, "-n", "--namespace") {
			if !namespaces[n] {
				t.Errorf("%s: nothing has made namespace %s", strings.Join(c, " "), n)
			}
		}
		if c[0] == "kubectl" && c[1] == "exec" && len(applied) != len(files) {
			t.Errorf("%s: of the files only %v are applied", strings.Join(c, " "), slices.Sorted(maps.Keys(applied)))
		}
	}
}

// confs are the configurations of SPIRE, by the file that has them.
func confs(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{
		"server.yaml": one[corev1.ConfigMap](t, "ConfigMap", "spire-server").Data["server.conf"],
		"agent.yaml":  one[corev1.ConfigMap](t, "ConfigMap", "spire-agent").Data["agent.conf"],
	}
}

// TestEveryConfigMapIsMade: what pods mount and no manifest makes, the README tells how to make, with the files that the
// configuration names.
func TestEveryConfigMapIsMade(t *testing.T) {
	made := map[string][]string{} // by name, its keys
	for _, c := range commands(t) {
		if strings.HasPrefix(strings.Join(c, " "), "kubectl create configmap -n spire ") {
			made[c[5]] = after(c, "--from-file")
		}
	}
	mounted := map[string]bool{}
	for file, p := range pods(t) {
		for _, v := range p.Spec.Volumes {
			if v.ConfigMap == nil {
				continue
			}
			keys, byHand := made[v.ConfigMap.Name]
			if !byHand {
				one[corev1.ConfigMap](t, "ConfigMap", v.ConfigMap.Name)
				continue
			}
			mounted[v.ConfigMap.Name] = true
			mounts := p.Spec.Containers[0].VolumeMounts
			i := slices.IndexFunc(mounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name })
			if i < 0 {
				t.Fatalf("%s: nothing mounts %s", file, v.Name)
			}
			if strings.Contains(confs(t)[file], `"`+mounts[i].MountPath+`"`) {
				continue // the folder, with whatever is in it
			}
			var named []string
			for _, m := range regexp.MustCompile(`"`+regexp.QuoteMeta(mounts[i].MountPath)+`/([^"]+)"`).FindAllStringSubmatch(confs(t)[file], -1) {
				named = append(named, m[1])
			}
			slices.Sort(named)
			slices.Sort(keys)
			if diff := cmp.Diff(slices.Compact(named), keys); diff != "" {
				t.Errorf("%s: ConfigMap %s (-named in the configuration +made):\n%s", file, v.ConfigMap.Name, diff)
			}
		}
	}
	for name := range made {
		if !mounted[name] {
			t.Errorf("no pod mounts ConfigMap %s", name)
		}
	}
}

// TestPolicySyncsIdentityIsTheAdmins: the entries that are made by hand give the ID that the server takes for its admin's.
func TestPolicySyncsIdentityIsTheAdmins(t *testing.T) {
	server, agent := confs(t)["server.yaml"], confs(t)["agent.yaml"]
	domain := setting(t, server, "trust_domain")
	if other := setting(t, agent, "trust_domain"); other != domain {
		t.Errorf("the server's trust domain is %s, the agents' %s", domain, other)
	}
	set := one[appsv1.StatefulSet](t, "StatefulSet", "spire-server")
	var made [][]string
	for _, c := range commands(t) {
		if c[1] != "exec" {
			continue
		}
		made = append(made, c)
		// The upstream image's path (Dockerfile: ENTRYPOINT), which the harness's image has as well.
		want := []string{"kubectl", "exec", "-n", set.Namespace, set.Name + "-0", "-c", set.Spec.Template.Spec.Containers[0].Name, "--",
			"/opt/spire/bin/spire-server", "entry", "create", "-socketPath", setting(t, server, "socket_path")}
		if diff := cmp.Diff(want, c[:len(want)]); diff != "" {
			t.Errorf("(-manifest +README):\n%s", diff)
		}
		for _, s := range after(c, "-selector") {
			if name, _, _ := strings.Cut(s, ":"); name != "keelson_tpm" && name != "keelson" {
				t.Errorf("selector %s is no plugin's of the configuration", s)
			}
			if verifier, ok := strings.CutPrefix(s, "keelson:signed-by:"); ok && !strings.Contains(agent, `verifiers "`+verifier+`"`) {
				t.Errorf("the agents know no verifier %s", verifier)
			}
		}
	}
	if len(made) != 2 {
		t.Fatalf("%d entries are made by hand", len(made))
	}
	class, own := after(made[0], "-spiffeID"), after(made[1], "-spiffeID")
	nodes, _, err := unstructured.NestedStringSlice(values(t), "policySync", "config", "spire", "adminNodes")
	if err != nil || len(nodes) != 1 || !slices.Contains(after(made[0], "-selector"), "keelson_tpm:node:"+nodes[0]) {
		t.Errorf("policy-sync's identity is for machines with %v, the chart names %v (%v)", after(made[0], "-selector"), nodes, err)
	}
	if !slices.Equal(after(made[1], "-parentID"), class) || !strings.HasPrefix(class[0], "spiffe://"+domain+"/") {
		t.Errorf("policy-sync's entry is under %v, the nodes are %v", after(made[1], "-parentID"), class)
	}
	if admin := setting(t, server, "admin_ids"); own[0] != admin {
		t.Errorf("policy-sync is %s, the server's admin %s", own[0], admin)
	}
}

// TestThePolicyIsTheSameEverywhere: the server's ConfigMap and the values for the upstream chart hold the two files word for word, and
// restrict the identity that the server takes for its admin's.
func TestThePolicyIsTheSameEverywhere(t *testing.T) {
	content, err := os.ReadFile("../../charts/spire-values/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	chart := map[string]any{}
	if err := yaml.Unmarshal(content, &chart); err != nil {
		t.Fatal(err)
	}
	config := one[corev1.ConfigMap](t, "ConfigMap", "spire-server").Data
	for name, key := range map[string]string{"policy.rego": "rego", "policy_data.json": "policy_data"} {
		want := read(t, name)
		if diff := cmp.Diff(want, config[name]); diff != "" {
			t.Errorf("%s (-file +server.yaml):\n%s", name, diff)
		}
		if diff := cmp.Diff(want, at(t, chart, "spire-server", "experimental", "authOpaPolicyEngine", "local", key)); diff != "" {
			t.Errorf("%s (-file +values.yaml):\n%s", name, diff)
		}
		if !strings.Contains(config["server.conf"], `"/etc/spire/`+name+`"`) {
			t.Errorf("the server does not read %s", name)
		}
	}
	var data struct {
		EntryAdmins []string `json:"entry_admins"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "policy_data.json")), &data); err != nil {
		t.Fatal(err)
	}
	if admin := setting(t, config["server.conf"], "admin_ids"); !slices.Equal(data.EntryAdmins, []string{admin}) {
		t.Errorf("the policy restricts %v, the server's admin is %s", data.EntryAdmins, admin)
	}
}

// TestTheChartIsToldWhereSPIREIs: the values of the README name this SPIRE. What the chart makes of them, test/charts looks at.
func TestTheChartIsToldWhereSPIREIs(t *testing.T) {
	v := values(t)
	service := one[corev1.Service](t, "Service", "spire-server")
	agent := confs(t)["agent.yaml"]
	set, daemons := one[appsv1.StatefulSet](t, "StatefulSet", "spire-server"), one[appsv1.DaemonSet](t, "DaemonSet", "spire-agent")
	account := func(namespace, name string) string {
		return fmt.Sprint([]any{map[string]any{"namespace": namespace, "serviceAccount": name}})
	}
	want := map[string]string{
		"spire.servers":                       account(set.Namespace, set.Spec.Template.Spec.ServiceAccountName),
		"spire.agents":                        account(daemons.Namespace, daemons.Spec.Template.Spec.ServiceAccountName),
		"policySync.spire.socketName":         path.Base(setting(t, agent, "socket_path")),
		"policySync.config.trustDomain":       setting(t, agent, "trust_domain"),
		"policySync.config.spire.address":     fmt.Sprintf("%s.%s:%d", service.Name, service.Namespace, service.Spec.Ports[0].Port),
		"image.registry":                      strings.TrimSuffix(pods(t)["agent.yaml"].Spec.InitContainers[0].Image, "/keelson-plugins:"+version(t)),
		"policySync.config.images.registries": fmt.Sprint([]any{setting(t, agent, "registries")}),
	}
	for field, value := range want {
		if got := at(t, v, strings.Split(field, ".")...); got != value {
			t.Errorf("%s is %s in the README, %s in the manifests", field, got, value)
		}
	}
	if address := setting(t, agent, "server_address"); address != service.Name+"."+service.Namespace {
		t.Errorf("agents look for the server at %s", address)
	}
	for _, c := range commands(t) {
		if c[0] == "make" && c[1] == "push" && c[2] != "REGISTRY="+at(t, v, "image", "registry") {
			t.Errorf("%v pushes elsewhere than the chart pulls from", c)
		}
	}
	// The CSI driver gives pods the folder that the agent's socket is in.
	for _, volume := range pods(t)["csi.yaml"].Spec.Volumes {
		if volume.Name == "agent-sockets" && volume.HostPath.Path != path.Dir(setting(t, agent, "socket_path")) {
			t.Errorf("the driver gives %s, the agent's socket is %s", volume.HostPath.Path, setting(t, agent, "socket_path"))
		}
	}
}

func version(t *testing.T) string {
	t.Helper()
	v, err := images.Version("../..")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestImagesArePinned: to the versions that the end-to-end scenarios run.
func TestImagesArePinned(t *testing.T) {
	built := map[string]string{}
	for _, p := range parts.List() {
		built[p.Name] = strings.TrimPrefix(p.Version, "v")
	}
	want := map[string]bool{
		"registry.example.org/keelson/keelson-plugins:" + version(t):     true,
		"ghcr.io/spiffe/spire-server:" + built["spire-server"]:           true,
		"ghcr.io/spiffe/spire-agent:" + built["spire-agent"]:             true,
		"ghcr.io/spiffe/spiffe-csi-driver:" + built["spiffe-csi-driver"]: true,
		"registry.k8s.io/sig-storage/csi-node-driver-registrar:v2.13.0":  true,
	}
	for file, p := range pods(t) {
		for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
			if !want[c.Image] {
				t.Errorf("%s: image %s is none of %v", file, c.Image, slices.Sorted(maps.Keys(want)))
			}
		}
	}
}

// TestRightsAreWhatThePluginsAsk: the workload attestor gets single Pods; it lists and watches nothing (workloadattestor/pod).
func TestRightsAreWhatThePluginsAsk(t *testing.T) {
	want := []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}}}
	if diff := cmp.Diff(want, one[rbacv1.ClusterRole](t, "ClusterRole", "keelson-workloadattestor").Rules); diff != "" {
		t.Errorf("(-want +agent.yaml):\n%s", diff)
	}
}
