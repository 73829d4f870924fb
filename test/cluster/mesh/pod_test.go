package mesh_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/test/cluster"
	"github.com/keelson-project/keelson/test/cluster/mesh"
)

// pod is a network namespace with an address on the bridge, an application in it and, unless it is plain, what Sidecar adds, run
// in the files of ProxyImage and of its volumes.
type pod struct {
	w      *world
	spec   *corev1.Pod
	ip     string
	root   string
	holder *cluster.Process // the application, whose namespace is the pod's
}

// answer and seen are what command echo prints.
type answer struct {
	Status int
	Body   string
	Error  string
}

type seen struct{ Method, Path, Peer, Remote string }

// start starts a pod as a kubelet would: network, plugin, init container, proxy.
func (w *world) start(namespace, name string) *pod {
	w.t.Helper()
	p := w.create(namespace, name, true)
	if out, err := p.redirect(); err != nil {
		w.t.Fatalf("istio-cni: %v: %s", err, out)
	}
	for _, c := range p.spec.Spec.InitContainers {
		if out, err := p.command(w.ctx, c).CombinedOutput(); err != nil {
			w.t.Fatalf("%s: %v: %s", c.Name, err, out)
		}
	}
	w.register(namespace, name, int(*p.proxy().SecurityContext.RunAsGroup))
	begun := time.Now()
	process := p.launch(p.proxy())
	url := fmt.Sprintf("http://%s:%s%s", p.ip, p.proxy().ReadinessProbe.HTTPGet.Port.String(), p.proxy().ReadinessProbe.HTTPGet.Path)
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	w.must(process.Until(ctx, func(ctx context.Context) error { return ok(ctx, url) }))
	w.t.Logf("proxy of %s/%s is ready after %.1f s", namespace, name, time.Since(begun).Seconds())
	return p
}

// plain starts a pod without a proxy.
func (w *world) plain(namespace, name string) *pod {
	w.t.Helper()
	return w.create(namespace, name, false)
}

// create makes the pod's object, with a service account of its name, and its network.
func (w *world) create(namespace, name string, sidecar bool) *pod {
	w.t.Helper()
	w.pods++
	template := &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{ServiceAccountName: name, NodeName: "one", Containers: []corev1.Container{{
			Name: "app", Image: "registry.test/echo", Ports: []corev1.ContainerPort{{Name: "http-api", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
		}}},
	}
	if sidecar {
		w.must(w.sidecar.Inject(template))
	}
	p := &pod{w: w, ip: fmt.Sprintf("10.66.0.%d", 10+w.pods), root: filepath.Join(w.roots, "pods", name)}
	p.spec = &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	p.spec.Namespace, p.spec.Name = namespace, name
	if sidecar { // SPIRE's attestor "unix" knows users and groups only
		p.proxy().SecurityContext.RunAsGroup = new(int64(2000 + w.pods))
	}
	w.namespace(namespace)
	w.apply(object(w.t, &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: meta(namespace, name)}))
	api := w.client.CoreV1().Pods(namespace)
	created, err := api.Create(w.ctx, p.spec, metav1.CreateOptions{})
	w.must(err)
	created.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: p.ip, PodIPs: []corev1.PodIP{{IP: p.ip}}, HostIP: gateway,
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	p.spec, err = api.UpdateStatus(w.ctx, created, metav1.UpdateOptions{})
	w.must(err)
	p.network()
	if sidecar {
		p.volumes()
	}
	return p
}

// proxy is the container that Sidecar adds.
func (p *pod) proxy() *corev1.Container {
	return &p.spec.Spec.Containers[len(p.spec.Spec.Containers)-1]
}

func (p *pod) network() {
	w := p.w
	var err error
	p.holder, err = w.cluster.Group().Start(cluster.Command{
		Name: "app-" + p.spec.Name, Path: tool(w, "unshare"), Args: []string{"--net", "--", w.echo, "serve", ":8080"},
	})
	w.must(err)
	ours, err := os.Readlink("/proc/self/ns/net")
	w.must(err)
	w.until("the pod's network namespace", func() error {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.holder.PID()))
		if err == nil && theirs == ours {
			err = fmt.Errorf("%s is still ours", theirs)
		}
		return err
	})
	outer := fmt.Sprintf("pod%d", w.pods)
	w.ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(p.holder.PID()))
	w.ip("link", "set", outer, "master", "pods", "up")
	for _, line := range []string{"link set lo up", "addr add " + p.ip + "/24 dev eth0", "link set eth0 up", "route add default via " + gateway} {
		if out, err := p.enter(w.ctx, nil, append([]string{"ip"}, strings.Fields(line)...)...).CombinedOutput(); err != nil {
			w.t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
}

func tool(w *world, name string) string {
	w.t.Helper()
	path, err := exec.LookPath(name)
	w.must(err)
	return path
}

// enter is a command in the pod's network.
func (p *pod) enter(ctx context.Context, flags []string, args ...string) *exec.Cmd {
	all := append([]string{"--target", strconv.Itoa(p.holder.PID()), "--net"}, flags...)
	return exec.CommandContext(ctx, tool(p.w, "nsenter"), append(append(all, "--"), args...)...)
}

// redirect calls Istio's CNI plugin as a container runtime does (CNI specification 1.0, section 2).
func (p *pod) redirect() (string, error) {
	config := p.w.plugin.Chained()
	config["cniVersion"], config["name"] = "1.0.0", "keelson"
	config["prevResult"] = map[string]any{"cniVersion": "1.0.0", "ips": []any{map[string]any{"address": p.ip + "/24"}}}
	stdin, err := json.Marshal(config)
	p.w.must(err)
	netns := fmt.Sprintf("/proc/%d/ns/net", p.holder.PID())
	cmd := exec.CommandContext(p.w.ctx, p.w.paths[mesh.CNIPart])
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = []string{
		"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + p.spec.Name, "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(p.w.paths[mesh.CNIPart]),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + p.spec.Namespace + ";K8S_POD_NAME=" + p.spec.Name, "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// volumes lays out the image's files and the pod's volumes below one folder, as a runtime and a kubelet would.
func (p *pod) volumes() {
	w := p.w
	for path := range w.image.Files {
		w.must(os.MkdirAll(filepath.Dir(filepath.Join(p.root, path)), 0o755))
		w.must(os.Link(filepath.Join(w.roots, "image", path), filepath.Join(p.root, path)))
	}
	w.write(filepath.Join(p.root, "etc/hosts"), []byte("127.0.0.1 localhost\n"+gateway+" "+mesh.Address+"\n"), 0o644)
	p.devices()
	for _, m := range p.proxy().VolumeMounts {
		for _, v := range p.spec.Spec.Volumes {
			if v.Name == m.Name {
				p.volume(m.MountPath, v)
			}
		}
	}
}

func (p *pod) volume(at string, v corev1.Volume) {
	w := p.w
	dir := filepath.Join(p.root, at)
	switch {
	case v.EmptyDir != nil:
		w.must(os.MkdirAll(dir, 0o755))
		w.must(os.Chmod(dir, 0o777))
	case v.CSI != nil:
		p.bind(w.sockets, at)
	case v.ConfigMap != nil:
		list, err := w.authority.Distribute(p.spec.Namespace)
		w.must(err)
		w.apply(list...)
		got, err := w.client.CoreV1().ConfigMaps(p.spec.Namespace).Get(w.ctx, v.ConfigMap.Name, metav1.GetOptions{})
		w.must(err)
		for name, content := range got.Data {
			w.write(filepath.Join(dir, name), []byte(content), 0o644)
		}
	case v.Projected != nil:
		want := v.Projected.Sources[0].ServiceAccountToken
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{want.Audience}, ExpirationSeconds: want.ExpirationSeconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.spec.Name, UID: p.spec.UID},
		}}
		token, err := w.client.CoreV1().ServiceAccounts(p.spec.Namespace).CreateToken(w.ctx, p.spec.Spec.ServiceAccountName, request, metav1.CreateOptions{})
		w.must(err)
		w.write(filepath.Join(dir, want.Path), []byte(token.Status.Token), 0o644)
	case v.DownwardAPI != nil:
		var labels strings.Builder
		for k, value := range p.spec.Labels {
			fmt.Fprintf(&labels, "%s=%q\n", k, value)
		}
		w.write(filepath.Join(dir, v.DownwardAPI.Items[0].Path), []byte(labels.String()), 0o644)
	default:
		w.t.Fatalf("volume %s is of no kind that this test knows", v.Name)
	}
}

// devices makes what a runtime gives every container: its own /proc, and a few devices. The machine's own are not touched.
func (p *pod) devices() {
	w := p.w
	proc, dev := filepath.Join(p.root, "proc"), filepath.Join(p.root, "dev")
	w.must(os.MkdirAll(proc, 0o755))
	w.must(unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	w.must(os.MkdirAll(dev, 0o755))
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} { // of major 1
		file := filepath.Join(dev, name)
		w.must(unix.Mknod(file, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))))
		w.must(os.Chmod(file, 0o666))
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		w.must(os.Symlink(to, filepath.Join(dev, name)))
	}
}

// bind mounts a folder of the servers read-only.
func (p *pod) bind(from, at string) {
	to := filepath.Join(p.root, at)
	p.w.must(os.MkdirAll(to, 0o755))
	p.w.must(unix.Mount(from, to, "", unix.MS_BIND, ""))
	p.w.must(unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
}

// command is a container's program, in the pod's network and files and as the container's user.
func (p *pod) command(ctx context.Context, c corev1.Container) *exec.Cmd {
	flags := []string{
		"--root=" + p.root, "--wd=" + p.root,
		"--setuid", fmt.Sprint(*c.SecurityContext.RunAsUser), "--setgid", fmt.Sprint(*c.SecurityContext.RunAsGroup),
	}
	env := environment(c.Env, map[string]string{
		"metadata.name": p.spec.Name, "metadata.namespace": p.spec.Namespace, "status.podIP": p.ip, "status.hostIP": gateway,
		"spec.serviceAccountName": p.spec.Spec.ServiceAccountName, "spec.nodeName": p.spec.Spec.NodeName,
	})
	args := append([]string{}, p.w.image.Entrypoint...)
	for _, a := range c.Args {
		for _, v := range env {
			name, value, _ := strings.Cut(v, "=")
			a = strings.ReplaceAll(a, "$("+name+")", value)
		}
		args = append(args, a)
	}
	cmd := p.enter(ctx, flags, args...)
	cmd.Env = env
	return cmd
}

// launch starts a container that stays.
func (p *pod) launch(c *corev1.Container) *cluster.Process {
	w := p.w
	name := "proxy-" + p.spec.Name
	// Envoy opens /dev/stdout, which is this file, as its own user.
	w.write(filepath.Join(w.dir, name+".log"), nil, 0o666)
	cmd := p.command(w.ctx, *c)
	process, err := w.cluster.Group().Start(cluster.Command{Name: name, Path: cmd.Path, Args: cmd.Args[1:], Env: cmd.Env})
	w.must(err)
	return process
}

// call makes a request from the pod's application, on a connection of its own.
func (p *pod) call(t *testing.T, method, url string) answer {
	t.Helper()
	out, err := p.enter(p.w.ctx, []string{"--setuid", "1000", "--setgid", "1000"}, p.w.echo, "call", method, url).Output()
	if err != nil {
		t.Fatalf("%s: %v", p.spec.Name, err)
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatal(err)
	}
	return a
}
