package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// policySync selects the pods of policy-sync.
const policySync = "app.kubernetes.io/name=keelson-policy-sync"

// Findings is what policy-sync has logged as findings so far, a line each.
func (s *Stage) Findings(ctx context.Context) ([]string, error) {
	lines, err := s.log(ctx, Namespace, policySync)
	return slices.DeleteFunc(lines, func(line string) bool { return !strings.Contains(line, "finding") }), err
}

// log is what pods have logged so far, a line each. It is read as their kubelets have it.
func (s *Stage) log(ctx context.Context, namespace, selector string) ([]string, error) {
	pods, err := s.Pods(ctx, namespace, selector)
	if err != nil {
		return nil, err
	}
	var lines []string
	for i := range pods {
		p := &pods[i]
		n := s.Node(p.Spec.NodeName)
		if n == nil {
			continue // it waits
		}
		root := fmt.Sprintf("/proc/%d/root", n.Services["kubelet"].Process().PID())
		files, err := filepath.Glob(filepath.Join(root, "var/log/pods", fmt.Sprintf("%s_%s_%s", p.Namespace, p.Name, p.UID), "*", "*.log"))
		if err != nil {
			return nil, fmt.Errorf("stage: %w", err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("stage: %w", err)
			}
			lines = slices.AppendSeq(lines, strings.Lines(string(content)))
		}
	}
	return lines, nil
}

// lastWords are the last lines that policy-sync logged, for an error.
func (s *Stage) lastWords(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	lines, err := s.log(ctx, Namespace, policySync)
	if err != nil {
		return err.Error()
	}
	return strings.Join(lines[max(0, len(lines)-10):], "")
}

// UntilFound waits until policy-sync has reported something as a finding, and returns its line.
func (s *Stage) UntilFound(ctx context.Context, words ...string) (line string, err error) {
	err = s.Until(ctx, 30*time.Second, fmt.Sprintf("policy-sync reports %q", words), func(ctx context.Context) error {
		line, err = s.Found(ctx, words...)
		return err
	})
	return line, err
}

// Found is the first finding of policy-sync that holds all words; without one it is an error.
func (s *Stage) Found(ctx context.Context, words ...string) (string, error) {
	all, err := s.Findings(ctx)
	if err != nil {
		return "", err
	}
	for _, line := range all {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			return line, nil
		}
	}
	return "", fmt.Errorf("none of %d findings holds %q", len(all), words)
}

// UntilProgrammed waits until a TrustPolicy says that it is programmed, or that it is not, and returns why.
func (s *Stage) UntilProgrammed(ctx context.Context, namespace, name string, want metav1.ConditionStatus) (why string, err error) {
	err = s.Until(ctx, 30*time.Second, fmt.Sprintf("policy %s/%s is programmed: %s", namespace, name, want), func(ctx context.Context) error {
		var p v1alpha1.TrustPolicy
		if err := s.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &p); err != nil {
			return err
		}
		for _, c := range p.Status.Conditions {
			if c.Type == v1alpha1.ConditionProgrammed {
				if why = c.Message; c.Status == want {
					return nil
				}
				return fmt.Errorf("it says %s: %s", c.Status, c.Message)
			}
		}
		return errors.New("it says nothing")
	})
	return why, err
}
