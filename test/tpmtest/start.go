// Package tpmtest gives tests and the demo real TPMs (swtpm, or the reference simulator
// on a socket), a manufacturer that certifies their EKs, boots to replay into them, and
// forged evidence to refuse. Only tests and the demo import it.
package tpmtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// startTimeout bounds how long a TPM may take until it answers on its socket.
const startTimeout = 20 * time.Second

// stopTimeout bounds how long a TPM may take to end before it is killed.
const stopTimeout = 5 * time.Second

// StartSocket starts a TPM that keeps its state under dir, and returns the Unix socket on
// which it takes raw commands. It is swtpm where that is installed, else the simulator,
// which this function builds with the go command and which forgets its state when
// it is stopped; either writes dir/tpm.log. Stopping and starting swtpm on the same dir is a reboot: PCRs are reset
// and resetCount rises. stop ends the process and removes the socket; it may be called twice.
// The path of dir should be short: a socket's path has at most 107 bytes.
func StartSocket(ctx context.Context, dir string) (path string, stop func() error, err error) {
	if _, err := exec.LookPath("swtpm"); err == nil {
		return startSwtpm(ctx, dir)
	}
	return StartSimulator(ctx, dir)
}

func startSwtpm(ctx context.Context, dir string) (string, func() error, error) {
	return startSwtpmOf(ctx, dir, "--tpm2")
}

// startSwtpmOf starts swtpm with further options; without --tpm2 it is a TPM 1.2.
func startSwtpmOf(ctx context.Context, dir string, options ...string) (string, func() error, error) {
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return "", nil, fmt.Errorf("tpmtest: %w", err)
	}
	path := filepath.Join(dir, "tpm.sock")
	cmd := exec.Command("swtpm", append([]string{"socket", "--tpmstate", "dir=" + state,
		"--server", "type=unixio,path=" + path,
		"--ctrl", "type=unixio,path=" + filepath.Join(dir, "ctrl.sock"),
		"--flags", "not-need-init,startup-clear"}, options...)...)
	stop, err := start(ctx, cmd, path)
	return path, stop, err
}

// StartSimulator is StartSocket with the simulator, whatever is installed.
func StartSimulator(ctx context.Context, dir string) (path string, stop func() error, err error) {
	binary, err := buildSimulator(ctx, dir)
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, "tpm.sock")
	stop, err = start(ctx, exec.Command(binary, "-socket", path), path)
	return path, stop, err
}

// buildSimulator builds cmd/tpmsim into dir; the go command's cache makes it cheap.
func buildSimulator(ctx context.Context, dir string) (string, error) {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("tpmtest: the source of tpmsim cannot be found")
	}
	binary := filepath.Join(dir, "tpmsim")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/tpmsim")
	cmd.Dir = filepath.Dir(here)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("tpmtest: build tpmsim: %w\n%s", err, out)
	}
	return binary, nil
}

// start starts a TPM and waits for its socket.
func start(ctx context.Context, cmd *exec.Cmd, path string) (stop func() error, err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	// swtpm writes a line for each client that goes; a person reads it when something broke.
	log, err := os.OpenFile(filepath.Join(filepath.Dir(path), "tpm.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	defer func() { _ = log.Close() }() // the process has its own descriptor
	cmd.Stdout, cmd.Stderr = log, log
	// A TPM must not outlive whoever started it, nor get its Ctrl-C.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("tpmtest: %w", err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // ended by a signal, which is no error here
		close(done)
	}()
	stop = func() error { return end(cmd, done, path) }
	deadline := time.Now().Add(startTimeout)
	for {
		if conn, err := net.Dial("unix", path); err == nil {
			return stop, conn.Close()
		}
		select {
		case <-done:
			return nil, fmt.Errorf("tpmtest: %s ended before it served %s; see %s", cmd.Path, path, log.Name())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), stop())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("tpmtest: %s did not serve %s within %s", cmd.Path, path, startTimeout), stop())
		}
	}
}

func end(cmd *exec.Cmd, done <-chan struct{}, path string) error {
	select {
	case <-done:
	default:
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("tpmtest: stop %s: %w", cmd.Path, err)
		}
	}
	select {
	case <-done:
	case <-time.After(stopTimeout):
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("tpmtest: kill %s: %w", cmd.Path, err)
		}
		<-done
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("tpmtest: %w", err)
	}
	return nil
}

// Dir is a new directory with a short path, removed after the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Start is StartSocket for a test, which ends the TPM.
func Start(t testing.TB) (path string) {
	t.Helper()
	return started(t, StartSocket)
}

func started(t testing.TB, with func(context.Context, string) (string, func() error, error)) string {
	t.Helper()
	path, stop, err := with(context.Background(), Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return path
}

// StartTPM12 starts a TPM 1.2, which is no TPM to attest with. It skips the test where
// swtpm is missing or was built without TPM 1.2.
func StartTPM12(t testing.TB) (path string) {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skip("swtpm is not installed")
	}
	path, stop, err := startSwtpmOf(context.Background(), Dir(t))
	if err != nil {
		t.Skipf("swtpm starts no TPM 1.2 here: %v", err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return path
}

// StartEach calls f with a fresh TPM of every kind that this machine has: the
// simulator always, swtpm where it is installed.
func StartEach(t *testing.T, f func(t *testing.T, path string)) {
	t.Run("simulator", func(t *testing.T) { f(t, started(t, StartSimulator)) })
	t.Run("swtpm", func(t *testing.T) {
		if _, err := exec.LookPath("swtpm"); err != nil {
			t.Skip("swtpm is not installed")
		}
		f(t, started(t, startSwtpm))
	})
}
