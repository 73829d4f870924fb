package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/test/cluster/machine"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

func TestARestrictedPodThatIsThereBeforeTheAgentReachesItThroughTheCSIDriver(t *testing.T) {
	needsRoot(t)
	before := tables(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	f, err := Start(ctx, Options{Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, f.Dir, f.Network.Bridge, before)
	}()
	if err := f.Cluster.Apply(ctx, []byte(csiNamespaces)); err != nil {
		t.Fatal(err)
	}
	root, err := parts.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.InstallCSI(ctx, filepath.Join(root, "examples", "spire", "csi.yaml")); err != nil {
		t.Fatal(err)
	}
	n, err := f.AddNode(ctx, machine.Options{Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	container := caller(t, ctx, f, "caller")
	socket := n.Path("/run/spire/agent-sockets/api.sock")
	if said := ask(t, ctx, n, container); !strings.Contains(said, "no such file") {
		t.Errorf("there is no agent, and the pod sees %s", said)
	}
	for _, agent := range []string{"the agent", "the agent that came after it"} {
		reached(t, agent, socket, func() string { return ask(t, ctx, n, container) })
	}
	readOnly(t, ctx, n, container)
	killCSI(t, ctx, f, n)
	later := caller(t, ctx, f, "later")
	for _, c := range []string{container, later} {
		reached(t, "the agent after the driver died", socket, func() string { return ask(t, ctx, n, c) })
	}
	gone(t, ctx, f, n)
}

const csiNamespaces = `
apiVersion: v1
kind: Namespace
metadata: {name: spire, labels: {pod-security.kubernetes.io/enforce: privileged}}
---
apiVersion: v1
kind: Namespace
metadata: {name: team, labels: {pod-security.kubernetes.io/enforce: restricted}}
`

// caller starts a pod with the driver's volume, waits until it runs, and returns its container.
func caller(t *testing.T, ctx context.Context, f *Fleet, name string) string {
	t.Helper()
	const workload = "test/e2e/workload"
	paths, err := parts.Commands(ctx, t.Output(), workload)
	if err != nil {
		t.Fatal(err)
	}
	files, err := Files(map[string]string{"/workload": paths[workload]})
	if err != nil {
		t.Fatal(err)
	}
	image, err := f.Push(ctx, "workload", node.Image{Files: files, Entrypoint: []string{"/workload"}})
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: new(int64(0)),
		Containers: []corev1.Container{{
			Name: "main", Image: image.Reference(), Args: []string{"pause"},
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(false), RunAsNonRoot: new(true), RunAsUser: new(int64(65532)),
				Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			VolumeMounts: []corev1.VolumeMount{{Name: "spire", MountPath: "/spire", ReadOnly: true}},
		}},
		Volumes: []corev1.Volume{{Name: "spire", VolumeSource: corev1.VolumeSource{
			CSI: &corev1.CSIVolumeSource{Driver: "csi.spiffe.io", ReadOnly: new(true)},
		}}},
	}}
	if err := until(ctx, func() error {
		_, err := f.Kubernetes.CoreV1().Pods("team").Create(ctx, pod, metav1.CreateOptions{})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var id string
	if err := until(ctx, func() error {
		pod, err := f.Kubernetes.CoreV1().Pods("team").Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range pod.Status.ContainerStatuses {
			if c.State.Running != nil {
				_, id, _ = strings.Cut(c.ContainerID, "://")
				return nil
			}
		}
		return fmt.Errorf("the pod does not run: %v", pod.Status)
	}); err != nil {
		t.Fatal(err)
	}
	return id
}

// ask calls the Workload API from inside, and returns what came of it.
func ask(t *testing.T, ctx context.Context, n *Node, container string) string {
	t.Helper()
	result, err := n.Runtime.Exec(ctx, container, "/workload", "svid", "-timeout", "20s")
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("svid: %v: %+v", err, result)
	}
	return result.Stdout
}

// reached listens at the agent's socket, with the rights that SPIRE's agent gives it, while the pod calls.
func reached(t *testing.T, agent, socket string, call func() string) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o777); err != nil { // #nosec G302 -- a socket for everybody
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			err = conn.Close()
		}
		accepted <- err
	}()
	said := call()
	if err := errors.Join(listener.Close(), <-accepted); err != nil { // the listener removes its socket
		t.Errorf("the pod did not reach %s: %v: it saw %s", agent, err, said)
	}
}

// readOnly looks at the mount as the container has it.
func readOnly(t *testing.T, ctx context.Context, n *Node, container string) {
	t.Helper()
	pid, err := n.Runtime.PID(ctx, container)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Run(ctx, "/bin/grep", "-q", " /spire ro,", fmt.Sprintf("/proc/%d/mountinfo", pid)); err != nil {
		t.Errorf("the folder of the socket is not mounted read-only: %v", err)
	}
}

// killCSI ends the driver and its registrar as kill -9 does, and waits until others run in their place.
func killCSI(t *testing.T, ctx context.Context, f *Fleet, n *Node) {
	t.Helper()
	running := func() (map[string]string, error) {
		pods, err := f.Kubernetes.CoreV1().Pods("spire").List(ctx, metav1.ListOptions{LabelSelector: "app=spiffe-csi-driver"})
		if err != nil {
			return nil, err
		}
		ids := map[string]string{}
		for _, p := range pods.Items {
			for _, c := range p.Status.ContainerStatuses {
				if _, id, _ := strings.Cut(c.ContainerID, "://"); c.State.Running != nil {
					ids[c.Name] = id
				}
			}
		}
		if len(ids) != 2 {
			return nil, fmt.Errorf("these run: %v, want the driver and its registrar", ids)
		}
		return ids, nil
	}
	before, err := running()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range before {
		pid, err := n.Runtime.PID(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Run(ctx, "/bin/kill", "-9", fmt.Sprint(pid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := until(ctx, func() error {
		now, err := running()
		if err == nil {
			for name, id := range before {
				if now[name] == id {
					err = fmt.Errorf("%s is still the one that was killed", name)
				}
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// gone deletes the pods and looks for what the driver mounted for them.
func gone(t *testing.T, ctx context.Context, f *Fleet, n *Node) {
	t.Helper()
	mounts := func() string {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", n.PID))
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	const mark = "/volumes/kubernetes.io~csi/spire/mount"
	if !strings.Contains(mounts(), mark) {
		t.Errorf("the node has no mount %s while the pods run", mark)
	}
	pods := f.Kubernetes.CoreV1().Pods("team")
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := until(ctx, func() error {
		left, err := pods.List(ctx, metav1.ListOptions{})
		if err == nil && len(left.Items) > 0 {
			err = errors.New("pods are still there")
		}
		if err == nil && strings.Contains(mounts(), mark) {
			err = errors.New("a pod's volume is still mounted")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
