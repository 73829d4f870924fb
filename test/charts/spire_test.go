package charts

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/test/charts/helm"
	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/parts"
)

// spire is what the upstream chart makes of our values.
type spire struct {
	objects      []*unstructured.Unstructured
	server       *appsv1.StatefulSet
	daemons      map[string]*appsv1.DaemonSet
	serverConfig map[string]any
	agentConfig  map[string]any
	// policy is what the server authorizes by: policy.rego and policy_data.json.
	policy map[string]string
}

// renderSPIRE renders the upstream chart, which is not ours to keep a copy of.
func renderSPIRE(t *testing.T) spire {
	t.Helper()
	dir := os.Getenv("KEELSON_SPIRE_CHART")
	if dir == "" {
		t.Skip("KEELSON_SPIRE_CHART is not set: give the folder or the archive of the chart spire of spiffe/helm-charts-hardened to check our values against it")
	}
	text, err := os.ReadFile("../../charts/spire-values/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// What the file tells people to replace.
	values := parse(t, strings.NewReplacer("registry.example.org", "registry.keelson.test", "spire.example.org", "spire.keelson.test", "example.org", trustDomain, "example-cluster", "one").Replace(string(text)))
	r, err := helm.Render(t.Context(), dir, "spire", "spire-mgmt", kubeVersion, values)
	if err != nil {
		t.Fatal(err)
	}
	s := spire{objects: objects(t, r.Manifest), daemons: map[string]*appsv1.DaemonSet{}, policy: map[string]string{}}
	for _, o := range s.objects {
		switch o.GetKind() {
		case "StatefulSet":
			s.server = convert(t, o, &appsv1.StatefulSet{})
		case "DaemonSet":
			d := convert(t, o, &appsv1.DaemonSet{})
			s.daemons[d.Name] = d
		case "ConfigMap":
			for _, key := range []string{"policy.rego", "policy_data.json"} {
				if text, ok, _ := unstructured.NestedString(o.Object, "data", key); ok {
					s.policy[key] = text
				}
			}
			for key, into := range map[string]*map[string]any{"server.conf": &s.serverConfig, "agent.conf": &s.agentConfig} {
				if text, ok, _ := unstructured.NestedString(o.Object, "data", key); ok {
					if err := json.Unmarshal([]byte(text), into); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if s.server == nil || s.daemons["spire-agent"] == nil || s.serverConfig == nil || s.agentConfig == nil {
		t.Fatal("the chart makes no server, no agent or no configuration of them")
	}
	return s
}

func convert[T any](t *testing.T, o *unstructured.Unstructured, into T) T {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into); err != nil {
		t.Fatal(err)
	}
	return into
}

// plugins are the names of a type's plugins in a SPIRE configuration.
func plugins(t *testing.T, config map[string]any, kind string) []string {
	t.Helper()
	list, _, err := unstructured.NestedSlice(config, "plugins", kind)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range list {
		for name := range p.(map[string]any) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func TestSPIREValuesMeanWhatTheySay(t *testing.T) {
	s := renderSPIRE(t)
	for what, tc := range map[string]struct {
		config map[string]any
		kind   string
		want   []string
	}{
		"nobody but a TPM lets a node in":                {s.serverConfig, "NodeAttestor", []string{"keelson_tpm"}},
		"an agent attests with its TPM":                  {s.agentConfig, "NodeAttestor", []string{"keelson_tpm"}},
		"an agent forgets its key when it ends":          {s.agentConfig, "KeyManager", []string{"memory"}},
		"nobody but Keelson says what a workload is":     {s.agentConfig, "WorkloadAttestor", []string{"keelson"}},
		"nobody composes credentials besides the server": {s.serverConfig, "CredentialComposer", nil},
	} {
		if got := plugins(t, tc.config, tc.kind); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %s %v, want %v", what, tc.kind, got, tc.want)
		}
	}
	for _, o := range s.objects {
		if o.GetKind() == "ClusterSPIFFEID" {
			t.Errorf("ClusterSPIFFEID %s issues IDs without proof", o.GetName())
		}
	}
	ttl, _, _ := unstructured.NestedString(s.serverConfig, "server", "agent_ttl")
	if d, err := time.ParseDuration(ttl); err != nil || d > 30*time.Minute {
		t.Errorf("agent_ttl %q is not short", ttl)
	}
	admins, _, _ := unstructured.NestedSlice(s.serverConfig, "server", "admin_ids")
	if want := "spiffe://" + trustDomain + "/ns/keelson-system/sa/keelson-policy-sync"; len(admins) != 1 || admins[0] != want {
		t.Errorf("admin_ids %v, want %s", admins, want)
	}
	for key, setting := range map[string]string{"policy.rego": "rego_path", "policy_data.json": "policy_data_path"} {
		path, _, _ := unstructured.NestedString(s.serverConfig, "server", "experimental", "auth_opa_policy_engine", "local", setting)
		if filepath.Base(path) != key || s.policy[key] == "" {
			t.Errorf("the server takes its policy from %q, %d bytes", path, len(s.policy[key]))
		}
	}
	if !strings.Contains(s.policy["policy_data.json"], `"entry_admins": ["spiffe://`+trustDomain+`/ns/keelson-system/sa/keelson-policy-sync"]`) {
		t.Error("the policy does not restrict policy-sync")
	}
	taint := corev1.Taint{Key: v1alpha1.UntrustedTaint, Effect: corev1.TaintEffectNoSchedule}
	pods := map[string]corev1.PodSpec{"spire-server": s.server.Spec.Template.Spec}
	for name, d := range s.daemons {
		pods[name] = d.Spec.Template.Spec
	}
	if len(pods) != 3 {
		t.Errorf("workloads: %d, want server, agent and CSI driver", len(pods))
	}
	for name, p := range pods {
		if !slices.ContainsFunc(p.Tolerations, func(x corev1.Toleration) bool {
			return x.Operator == corev1.TolerationOpExists && (x.Key == "" || x.Key == taint.Key) && (x.Effect == "" || x.Effect == taint.Effect)
		}) {
			t.Errorf("%s does not tolerate the taint: %v", name, p.Tolerations)
		}
	}
	mounts(t, "spire-server", pods["spire-server"], "/opt/keelson", "/etc/keelson/ek-roots", "/etc/keelson/references", "/run/spire/data")
	mounts(t, "spire-agent", pods["spire-agent"], "/opt/keelson", "/dev/tpmrm0", "/sys/kernel/security", "/var/lib/keelson", "/run/containerd/containerd.sock",
		"/etc/keelson/verifiers", "/var/run/secrets/tokens", "/run/keelson-tmp")
	if !pods["spire-agent"].HostPID || !*pods["spire-agent"].Containers[0].SecurityContext.Privileged {
		t.Error("the agent sees neither the host's processes nor its devices")
	}
	for _, name := range []string{"spire-server", "spire-agent"} {
		if !slices.ContainsFunc(pods[name].InitContainers, func(c corev1.Container) bool {
			return slices.Equal(c.Args, []string{"plugins", "install", "/opt/keelson"})
		}) {
			t.Errorf("%s does not bring the plugins", name)
		}
	}
}

// mounts checks that a pod's first container mounts these paths from volumes that the pod has.
func mounts(t *testing.T, name string, p corev1.PodSpec, paths ...string) {
	t.Helper()
	for _, path := range paths {
		i := slices.IndexFunc(p.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == path })
		if i < 0 {
			t.Errorf("%s does not mount %s", name, path)
			continue
		}
		volume := p.Containers[0].VolumeMounts[i].Name
		if volume != "spire-data" && !slices.ContainsFunc(p.Volumes, func(v corev1.Volume) bool { return v.Name == volume }) {
			t.Errorf("%s mounts %s from volume %s, which it has not", name, path, volume)
		}
	}
}

// TestSPIREValuesLoadThePlugins runs the real SPIRE server and agent with the configurations that the chart made, but for the
// places of files, and asks them whether they took Keelson's plugins and their configuration.
func TestSPIREValuesLoadThePlugins(t *testing.T) {
	s := renderSPIRE(t)
	c := cluster.ForTest(t, cluster.Options{})
	paths, err := parts.Ensure(t.Context(), t.Output(), "spire-server", "spire-agent")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "klsn-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	scene(t, dir)
	place := strings.NewReplacer("/opt/keelson", dir+"/opt", "/etc/keelson", dir+"/etc", "/run/spire/data", dir+"/data", "/run/spire/config", dir, "/var/lib/keelson", dir+"/state",
		"/var/lib/spire", dir+"/agent", "/tmp/spire-agent/public", dir, "/var/run/secrets/tokens/spire-agent", dir+"/etc/token", "/run/spire/bundle/bundle.spiffe", dir+"/etc/bundle",
		"/run/containerd/containerd.sock", dir+"/cri.sock", `"in_cluster":true`, fmt.Sprintf(`"kubeconfig":%q`, c.AdminKubeconfig()))
	for name, text := range s.policy {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Neither is ours: the notifier needs a pod's own account, the health and metrics ports are fixed.
	delete(s.serverConfig["plugins"].(map[string]any), "BundlePublisher")
	for _, config := range []map[string]any{s.serverConfig, s.agentConfig} {
		delete(config, "health_checks")
		delete(config, "telemetry")
	}
	port, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	server := s.serverConfig["server"].(map[string]any)
	server["bind_address"], server["bind_port"], server["socket_path"] = "127.0.0.1", fmt.Sprint(port), filepath.Join(dir, "api.sock")
	agent := s.agentConfig["agent"].(map[string]any)
	agent["server_address"], agent["server_port"], agent["insecure_bootstrap"] = "127.0.0.1", fmt.Sprint(port), true
	delete(agent, "trust_bundle_path")
	delete(agent, "rebootstrap_mode")
	delete(agent, "rebootstrap_delay")
	// A file stands for the TPM: the plugin opens it when it attests, which is not the matter here.
	attestor := s.agentConfig["plugins"].(map[string]any)["NodeAttestor"].([]any)[0].(map[string]any)["keelson_tpm"].(map[string]any)["plugin_data"].(map[string]any)
	attestor["tpm"] = filepath.Join(dir, "etc", "token")

	for _, tc := range []struct {
		program string
		config  map[string]any
		args    []string
		loaded  []string
	}{
		{"spire-server", s.serverConfig, []string{"-expandEnv"}, []string{"keelson_tpm"}},
		{"spire-agent", s.agentConfig, nil, []string{"keelson", "keelson_tpm"}},
	} {
		text, err := json.Marshal(tc.config)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, tc.program+".conf")
		if err := os.WriteFile(file, []byte(place.Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := c.Group().Start(cluster.Command{Name: tc.program, Path: paths[tc.program], Args: append([]string{"run", "-config", file}, tc.args...), Env: []string{"KEELSON_NODE_NAME=fra-1"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, plugin := range tc.loaded {
			loaded := func() error {
				log := p.Tail(1000)
				for _, line := range strings.Split(log, "\n") {
					if strings.Contains(line, "Plugin loaded") && strings.Contains(line, "external=true") && strings.Contains(line, "plugin_name="+plugin+" ") {
						return nil
					}
				}
				return fmt.Errorf("%s did not load %s:\n%s", tc.program, plugin, log)
			}
			var err error
			for begun := time.Now(); time.Since(begun) < 30*time.Second; time.Sleep(100 * time.Millisecond) {
				if err = loaded(); err == nil {
					break
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s loaded %s", tc.program, plugin)
		}
	}
}

// scene puts in place what an operator's ConfigMaps hold, and the plugins as the init container installs them.
func scene(t *testing.T, dir string) {
	t.Helper()
	run := func(folder, name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = folder
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	for _, name := range []string{"opt", "image", "etc/ek-roots", "etc/references", "etc/verifiers", "data", "state", "agent"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	keelson := filepath.Join(dir, "keelson")
	run("../..", "go", "build", "-o", keelson, "./cmd/keelson")
	run("../..", "go", "build", "-o", filepath.Join(dir, "image")+"/", "./cmd/keelson-nodeattestor-agent", "./cmd/keelson-nodeattestor-server", "./cmd/keelson-workloadattestor")
	t.Logf("plugins install:\n%s", run(dir, keelson, "plugins", "install", filepath.Join(dir, "opt"), "--from", filepath.Join(dir, "image")))
	boots := "../vectors/measured-boots"
	run(".", keelson, "reference", "capture", "--dir", boots+"/good", "--name", "prod", "-o", filepath.Join(dir, "etc/references/prod.yaml"))
	root, err := os.ReadFile(boots + "/ca/swtpm-localca-rootca-cert.pem")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"ek-roots/root.pem": string(root), "verifiers/release-key.pem": key, "token": "token"} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSPIREValuesAreAdmitted: the API takes the objects, and PodSecurity the pods, in namespaces labelled as our README says.
func TestSPIREValuesAreAdmitted(t *testing.T) {
	s := renderSPIRE(t)
	ctrllog.SetLogger(logr.Discard()) // warnings of the API
	c := cluster.ForTest(t, cluster.Options{})
	api, err := client.New(c.RESTConfig(), client.Options{Scheme: clientscheme.Scheme, FieldOwner: "test", FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		t.Fatal(err)
	}
	for name, level := range map[string]string{"spire-server": "restricted", "spire-system": "privileged", "spire-mgmt": "restricted"} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pod-security.kubernetes.io/enforce": level}}}
		if err := api.Create(t.Context(), ns); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range s.objects {
		switch o.GroupVersionKind().Group {
		case "spire.spiffe.io": // the definitions are another chart's
		case "":
			if o.GetKind() == "Pod" { // the chart's own test
				continue
			}
			fallthrough
		default:
			if err := api.Create(t.Context(), o.DeepCopy()); err != nil && !apierrors.IsAlreadyExists(err) {
				t.Errorf("%s: %v", id(o), err)
			}
		}
	}
	templates := map[string]corev1.PodTemplateSpec{"spire-server": s.server.Spec.Template}
	for name, d := range s.daemons {
		templates[name] = d.Spec.Template
	}
	for name, template := range templates {
		namespace := "spire-system"
		if name == "spire-server" {
			namespace = name
			template.Spec.Volumes = append(template.Spec.Volumes, corev1.Volume{Name: "spire-data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "spire-data"}}}) // what the StatefulSet's claim becomes
		}
		p := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
		p.Namespace, p.Name = namespace, name+"-0"
		if err := api.Create(t.Context(), p, client.DryRunAll); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
