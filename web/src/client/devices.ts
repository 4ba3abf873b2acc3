/** Microphone and camera: opened with what a call needs, and their problems in words. */

import { CallError } from "./errors";
import type { DeviceName } from "./transport";

export const DEVICE_NAMES: readonly DeviceName[] = ["microphone", "camera"];

const CONSTRAINTS: Record<DeviceName, MediaTrackConstraints> = {
  microphone: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: { ideal: 1 } },
  camera: { width: { ideal: 336 }, height: { ideal: 192 }, frameRate: { ideal: 25, max: 30 } },
};

/** id: which one; "": the browser's choice. Raises `CallError` with code "permission" or "device". */
export async function openDevice(device: DeviceName, id: string): Promise<MediaStreamTrack> {
  const constraints = id ? { ...CONSTRAINTS[device], deviceId: { exact: id } } : CONSTRAINTS[device];
  try {
    const wanted = device === "microphone" ? { audio: constraints } : { video: constraints };
    const stream = await navigator.mediaDevices.getUserMedia(wanted);
    return stream.getTracks()[0]!;
  } catch (error) {
    throw explained(error, device);
  }
}

function explained(error: unknown, device: DeviceName): CallError {
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError") {
    return new CallError(`No permission for the ${device}`, `Allow the ${device} in the browser's address bar.`, "permission");
  }
  if (name === "NotReadableError") {
    return new CallError(`The ${device} is in use`, "Another program uses it. Close that program and try again.", "device");
  }
  return new CallError(`No ${device} found`, "Plug one in or choose another device.", "device");
}

export interface Choice {
  id: string;
  label: string;
}

/** What is plugged in. Names appear only after permission was given once. */
export async function listDevices(device: DeviceName): Promise<Choice[]> {
  const kind = device === "microphone" ? "audioinput" : "videoinput";
  const all = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return all
    .filter((found) => found.kind === kind && found.deviceId && found.deviceId !== "default")
    .map(({ deviceId, label }) => ({ id: deviceId, label: label || device }));
}
